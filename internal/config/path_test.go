package config

import (
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPathsThatAreExempt(t *testing.T) {
	for _, c := range []struct {
		prefix   string
		yes, not []string
	}{
		{"/healthz", []string{
			"/healthz", "/healthz/", "/healthz/x", "/healthz?q", "/healthz?", "/healthz?/../upload", "/healthz#f", "/healthz#/../upload",
			"/healthz//x", "/healthz/a%20b", "/healthz/%41", "/healthz/.well-known", "/healthz/..x", "/healthz/x..", "/healthz/a.b/c..d",
			"/healthz/x;v=1", "/healthz/x%2e%2E?a=%2f", "/healthz/%2e%2ex", "/healthz/.~",
		}, []string{
			"", "/", "*", "healthz", "/health", "/healthzzz", "/healthz;x", "/healthz%2f", "/Healthz", "//healthz", "/x/healthz",
			"http://host/healthz", "/healthz.", "/%68ealthz",
			// Dot segments, in all ways that somebody reads.
			"/healthz/..", "/healthz/.", "/healthz/../upload", "/healthz/./x", "/healthz/x/../../upload", "/healthz/..?q", "/healthz/..#f",
			"/healthz/%2e%2e/upload", "/healthz/%2E./upload", "/healthz/.%2e/upload", "/healthz/%2e", "/healthz/..;/upload",
			"/healthz/..;x=y/upload", "/healthz/%2e%2e;/upload", "/healthz/..%3b/upload", "/healthz/..%20/upload", "/healthz/..../upload",
			"/healthz/..:x/upload",
			// What is a slash to some.
			"/healthz%2f..%2fupload", "/healthz/..%2fupload", "/healthz/x%2Fy", "/healthz/..%5cupload", "/healthz/x%5Cy", `/healthz/..\upload`,
			`/healthz\..\upload`, `/healthz/x\y`,
			// What is decoded twice, and what can't be decoded at all.
			"/healthz/%252e%252e/upload", "/healthz/..%252fupload", "/healthz/%25", "/healthz/%", "/healthz/%2", "/healthz/%2?", "/healthz/%zz",
			"/healthz/%u002e", "/healthz/%2/x",
			// What ends or changes a text elsewhere.
			"/healthz/\x00", "/healthz/%00", "/healthz/..%00/upload", "/healthz/\t", "/healthz/%0a", "/healthz/ x", "/healthz/\x7f", "/healthz/%7F",
			"/healthz/%c0%ae%c0%ae/upload", "/healthz/\xc0\xae\xc0\xae/upload", "/healthz/%c0%afupload", "/healthz/é", "/healthz/%ef%bc%8f",
		}},
		{"/static/", []string{"/static/", "/static/x", "/static/?q", "/static//"}, []string{"/static", "/static?", "/statics/x", "/static/../x", "/static/."}},
		{"/", []string{"/", "/x", "/?q", "//x"}, []string{"", "*", "?", "/..", "/x/..", "x"}},
		{"/a%20b", []string{"/a%20b", "/a%20b/c"}, []string{"/a%20bc", "/a b"}},
		{"/pkg.Service/", []string{"/pkg.Service/Method"}, []string{"/pkg.Service", "/pkg.ServiceX/Method", "/pkg.Service/../x", "/pkg.Service%2fMethod"}},
	} {
		for _, p := range c.yes {
			require.True(t, AnyPrefix([]string{"/nothing", c.prefix}, p), "%s: %q", c.prefix, p)
		}
		for _, p := range c.not {
			require.False(t, AnyPrefix([]string{"/nothing", c.prefix}, p), "%s: %q", c.prefix, p)
		}
	}
	prefixes := []string{"/healthz", "/pkg.Service/"}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		AnyPrefix(prefixes, "/healthz/a%20b?c")
		AnyPrefix(prefixes, "/pkg.Service/%2e%2e/Method")
	}))
}

// readings are all that those behind Envoy may make of a path.
func readings(p string) []string {
	end := strings.IndexAny(p, "?#")
	if end < 0 {
		end = len(p)
	}
	all := map[string]bool{p[:end]: true}
	for range 3 {
		for r := range all {
			if once, err := url.PathUnescape(r); err == nil {
				all[once] = true
			}
			all[strings.ReplaceAll(r, `\`, "/")] = true
			segments := strings.Split(r, "/")
			for i := range segments {
				segments[i], _, _ = strings.Cut(segments[i], ";")
			}
			all[strings.Join(segments, "/")] = true
			if before, _, found := strings.Cut(r, "\x00"); found {
				all[before] = true
			}
		}
	}
	var list []string
	for r := range all {
		list = append(list, r)
	}
	return list
}

// However the upstream reads a path that is exempt, it is below the prefix.
func FuzzExemptPath(f *testing.F) {
	for _, p := range []string{
		"/healthz", "/healthz/x?y", "/healthz/../upload", "/healthz/%2e%2e/upload", "/healthz/..;/upload", "/healthz/%252e%252e/upload",
		`/healthz/..\upload`, "/healthz%2f..%2fupload", "/healthz/.%00./x", "/healthz/...//x;../y", "/healthz/%c0%ae/x",
	} {
		f.Add(p, "/healthz")
	}
	f.Add("/a%20b/c", "/a%20b/")
	f.Fuzz(func(t *testing.T, p, prefix string) {
		rule := Exempt{PathPrefix: prefix}
		valid := true
		rule.validate("exempt[0]", func(ok bool, _ string, _ ...any) { valid = valid && ok })
		if prefix == "" || !valid {
			return
		}
		if !AnyPrefix([]string{prefix}, prefix) {
			t.Fatalf("a valid prefix %q does not match itself", prefix)
		}
		if !AnyPrefix([]string{prefix}, p) {
			return
		}
		want := map[string]bool{} // the prefix may be read in as many ways
		for _, r := range readings(prefix) {
			want[path.Clean(r)] = true
		}
		for _, r := range readings(p) {
			if clean := path.Clean(r); !below(clean, want) {
				t.Fatalf("%q is exempt by %q, and may be read as %q", p, prefix, clean)
			}
		}
	})
}

func below(p string, prefixes map[string]bool) bool {
	for prefix := range prefixes {
		if prefix == "/" || p == prefix || strings.HasPrefix(p, prefix+"/") {
			return true
		}
	}
	return false
}
