// Package corpus reads configurations of Envoy that nobody here wrote, for tests: those of other
// projects, out of their Go modules.
package corpus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"sigs.k8s.io/yaml"
)

// Project is one whose configurations of Envoy are read: a module at a version, and its hash, as
// go.sum has it. Nothing of it is in this repository: `go mod download` fetches it once, 22 MB for
// all, into Go's module cache.
type Project struct {
	Module, Version string
	sum             string
	files           []string // of bootstraps and dumps: patterns
	resources       []string // of which NAME.listeners.yaml, .routes.yaml and .clusters.yaml are parts of one Envoy
	under           string   // where those are
}

// Projects are those that tests read.
var Projects = []Project{
	{
		Module: "github.com/envoyproxy/gateway", Version: "v1.9.1", sum: "h1:vAVp6/AlBXJ1aOhp1mxL7fNEzVEfjADUguUhm2wzxQY=",
		files: []string{"internal/xds/bootstrap/testdata/render/*.yaml", "internal/xds/bootstrap/testdata/merge/*.out.yaml", "internal/cmd/egctl/testdata/config/in/in.all.json"},
		under: "internal/xds/translator/testdata/out/xds-ir/",
		resources: []string{
			"backend-buffer-limit", "circuit-breaker", "client-buffer-limit", "client-timeout", "compression", "compressor", "ext-auth-body", "ext-proc", "http-route-mirror",
			"http-route-multiple-mirrors", "http-route-direct-response", "http-route-weighted-backend", "http1-trailers", "http2", "http2-route", "http3", "listener-connection-limit",
			"listener-proxy-protocol", "lua", "multiple-listeners-same-port-with-different-filters", "path-settings", "request-buffer", "retry", "tcp-route-simple", "tcp-route-weighted-backend",
			"tls-route-passthrough", "tracing", "udp-route", "wasm", "dynamicmodule", "oidc", "accesslog", "credential-injection", "http-route-dynamic-resolver", "mutual-tls",
		},
	},
	{
		Module: "istio.io/istio", Version: "v0.0.0-20260827124520-eed52ebb66ad", sum: "h1:ui9TJjRMAV/hb5ehQaZDq7IUGxuQP6dra9lapT/VjHI=",
		files: []string{
			"pkg/bootstrap/testdata/*_golden.json", "istioctl/pkg/proxyconfig/testdata/config_dump.json", "istioctl/pkg/writer/compare/testdata/configdump_diff.json",
			"istioctl/pkg/authz/testdata/configdump.yaml", "istioctl/pkg/writer/envoy/configdump/testdata/*/configdump.json", "tests/testdata/envoy_local.json",
		},
	},
	{Module: "github.com/corazawaf/coraza-proxy-wasm", Version: "v0.0.0-20260824140537-b1770f5b0be3", sum: "h1:RTlM/+ajVYMmKPVFFxEpLWkXXWDKf9Ez9ejWT5hPD/E=", files: []string{"e2e/*/envoy-config.yaml", "example/envoy/envoy-config.yaml", "ftw/envoy-config*.yaml"}},
	{Module: "github.com/envoyproxy/go-control-plane", Version: "v0.14.0", sum: "h1:hbG2kr4RuFj222B6+7T83thSPqLjwBIfQawTkC++2HA=", files: []string{"sample/bootstrap-*.yaml"}},
	{Module: "github.com/tetratelabs/func-e", Version: "v1.6.0", sum: "h1:TlTVVCSX/I+SBg6NWtU8On7EjrGz2/kxHQUtOo5tl1U=", files: []string{"e2e/*.yaml", "internal/envoy/config/testdata/*.yaml"}},
	{Module: "github.com/envoyproxy/ratelimit", Version: "v1.4.1-0.20260122083618-3fb702589d36", sum: "h1:nEi1OH2qhE8NtcuBgO/uKpTw/P0nVu4i8mZvL6oD9CQ=", files: []string{"examples/envoy/*.yaml"}},
}

// others are those of which nothing but what they define for Kubernetes is read.
var others = []Project{
	{Module: "github.com/prometheus-operator/prometheus-operator", Version: "v0.85.0", sum: "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="},
}

// Named is the project of a module.
func Named(module string) (Project, error) {
	for _, p := range slices.Concat(Projects, others) {
		if p.Module == module {
			return p, nil
		}
	}
	return Project{}, fmt.Errorf("%s: is none of the projects that tests read", module)
}

// Fetch brings a project into Go's module cache, and says where it is. It is what it was when its
// hash was taken.
func (p Project) Fetch(ctx context.Context) (dir string, err error) {
	away, err := os.MkdirTemp("", "highwater-corpus-") // no module: what is downloaded is no dependency of anything
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(away) }()
	ctx, cancel := context.WithTimeout(ctx, fetchWithin)
	defer cancel()
	download := exec.CommandContext(ctx, "go", "mod", "download", "-json", p.Module+"@"+p.Version)
	download.Dir = away
	download.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GONOSUMDB=*", "GO111MODULE=on", "GOWORK=off") // the hash is held here
	out, failed := download.Output()
	var got struct{ Dir, Sum, Error string }
	if err := json.Unmarshal(out, &got); err != nil || got.Error != "" {
		return "", fmt.Errorf("%s@%s: %s: %w", p.Module, p.Version, got.Error, errors.Join(failed, err))
	}
	if got.Sum != p.sum {
		return "", fmt.Errorf("%s@%s: its hash is %s, and must be %s", p.Module, p.Version, got.Sum, p.sum)
	}
	return got.Dir, nil
}

// fetchWithin is more than the largest of them takes, 12 MB.
const fetchWithin = 2 * time.Minute

// Configurations are those of a project, by name.
func (p Project) Configurations(ctx context.Context) (map[string][]byte, error) {
	dir, err := p.Fetch(ctx)
	if err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	for _, pattern := range p.files {
		paths, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(pattern)))
		if err != nil || len(paths) == 0 {
			return nil, fmt.Errorf("%s: %s: %d files: %w", p.Module, pattern, len(paths), err)
		}
		for _, path := range paths {
			name, err := filepath.Rel(dir, path)
			if err != nil {
				return nil, err
			}
			if all[filepath.ToSlash(name)], err = os.ReadFile(path); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range p.resources {
		if all[p.under+name], err = asDump(filepath.Join(dir, filepath.FromSlash(p.under), name)); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// asDump makes of resources as a control plane sends them what an Envoy that has them would answer.
func asDump(path string) ([]byte, error) {
	configs := []any{}
	for _, kind := range []struct {
		file, key string
		wrap      func(v any) any
	}{
		{"clusters", "dynamic_active_clusters", func(v any) any { return map[string]any{"cluster": v} }},
		{"listeners", "dynamic_listeners", func(v any) any { return map[string]any{"active_state": map[string]any{"listener": v}} }},
		{"routes", "dynamic_route_configs", func(v any) any { return map[string]any{"route_config": v} }},
	} {
		text, err := os.ReadFile(path + "." + kind.file + ".yaml")
		if os.IsNotExist(err) && kind.file != "listeners" {
			continue
		}
		var list []any
		if err = errors.Join(err, yaml.Unmarshal(text, &list)); err != nil {
			return nil, err
		}
		for i := range list {
			list[i] = kind.wrap(list[i])
		}
		configs = append(configs, map[string]any{kind.key: list})
	}
	return json.Marshal(map[string]any{"configs": configs})
}
