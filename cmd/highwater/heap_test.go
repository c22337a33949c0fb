package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/rtti/rttitest"
)

// small is a binary with one class.
var small = rttitest.Binary{
	BuildID: []byte{0xab}, Functions: 3,
	Classes: []rttitest.Class{{Name: "N5Envoy6BufferE", Virtual: []int{1}}},
}

// smallDump is a heap dump of it: 4 MiB that its class holds.
func smallDump(t *testing.T) []byte {
	t.Helper()
	code := &profile.Mapping{ID: 1, Start: 0x5000_0000, Limit: 0x5000_0030, Offset: rttitest.CodeOffset, File: "/no/such/envoy", BuildID: "ab"}
	frame := &profile.Location{ID: 1, Mapping: code, Address: code.Start + 17}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "objects", Unit: "count"}, {Type: "space", Unit: "bytes"}},
		Mapping:    []*profile.Mapping{code}, Location: []*profile.Location{frame},
		Sample: []*profile.Sample{{Location: []*profile.Location{frame}, Value: []int64{2, 4 << 20}}},
	}
	var b bytes.Buffer
	require.NoError(t, p.Write(&b))
	return b.Bytes()
}

// inDir are files of a test, and their paths by name.
func inDir(t *testing.T, files map[string][]byte) map[string]string {
	t.Helper()
	dir, paths := t.TempDir(), map[string]string{}
	for name, data := range files {
		paths[name] = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(paths[name], data, 0o600))
	}
	return paths
}

func TestHeap(t *testing.T) {
	files := inDir(t, map[string][]byte{"envoy": small.Bytes(), "dump": smallDump(t)})
	var asked []string
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		if r.URL.Path == "/memory/tcmalloc" {
			http.Error(w, "not here", http.StatusNotFound)
			return
		}
		_, _ = w.Write(smallDump(t))
	}))
	defer admin.Close()
	table := "in use (by samples alone), 100.0% of it with a class"
	out, errs := call(t, 0, "heap", "-cache", "none", "-binary", files["envoy"], files["dump"])
	require.Contains(t, out, "heap: 4.0MiB "+table)
	require.Contains(t, out, "  Envoy::Buffer\n")
	require.NotContains(t, out, "note:")
	require.Empty(t, errs)

	out, _ = call(t, 0, "heap", "-cache", t.TempDir(), "-binary", files["envoy"], "-admin", admin.URL)
	require.Contains(t, out, "heap: 4.0MiB "+table)
	require.Contains(t, out, "note: its weights are estimates of few samples, for the exact sizes are not known: "+
		admin.URL+"/memory/tcmalloc answers 404 Not Found, not 200\n")
	require.Equal(t, []string{"/heap_dump", "/memory/tcmalloc"}, asked)

	asked = nil
	file := filepath.Join(t.TempDir(), "heap.pb.gz")
	out, _ = call(t, 0, "heap", "-peak", "-cache", "none", "-binary", files["envoy"], "-admin", admin.URL, "-o", file)
	require.Empty(t, out)
	require.Equal(t, []string{"/peak_heap_dump"}, asked)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	p, err := profile.ParseData(data)
	require.NoError(t, err)
	require.Equal(t, "Envoy::Buffer#0", p.Function[0].Name)
}

// call runs the command and returns what it prints.
func call(t *testing.T, status int, args ...string) (out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	require.Equal(t, status, run(args, strings.NewReader(""), &o, &e), "%v: %s%s", args, o.String(), e.String())
	return o.String(), e.String()
}

// A wrong call and a source that can't be read are one line that says what to change.
func TestHeapFails(t *testing.T) {
	files := inDir(t, map[string][]byte{
		"envoy": small.Bytes(), "dump": smallDump(t), "garbage": bytes.Repeat([]byte("garbage "), 10<<17), "little": []byte("garbage"), "empty": nil,
	})
	refuses := httptest.NewServer(http.NotFoundHandler())
	defer refuses.Close()
	for want, args := range map[string][]string{
		"one dump is read at a time":                      {"a", "b"},
		"name a dump or -admin, and not both":             {"-admin", "http://x", "a"},
		"-pid -1 must be the number of a process":         {"-pid", "-1", "a"},
		"name -pid or -binary, and not both":              {"-pid", "1", "-binary", "x", "a"},
		"leave one of -sizes and -peak out":               {"-peak", "-sizes", "x", "a"},
		"flag provided but not defined: -x\nhighwater he": {"-x"},
	} {
		_, errs := call(t, 2, append([]string{"heap"}, args...)...)
		require.Contains(t, errs, want)
	}
	for want, args := range map[string][]string{
		"no such file or directory":                       {"/no/such/dump"},
		"garbage is too large: no more than 8MiB is read": {files["garbage"]},
		"the heap dump: it is no profile: ":               {files["little"]},
		"the heap dump: ":                                 {files["empty"]},
		"the binary that the dump names can't be read: name Envoy's process or its binary: ": {files["dump"]},
		"there is no process 4194304: ":                                              {"-pid", "4194304", files["dump"]},
		"little: not a 64-bit ELF binary of amd64 or arm64":                          {"-binary", files["little"], files["dump"]},
		"-sizes " + files["little"] + ": no text of an allocator that is known here": {"-sizes", files["little"], "-binary", files["envoy"], files["dump"]},
		"envoy: it has no symbols: name a binary of the same build":                  {"-symbols", files["envoy"], files["dump"]},
		"-admin: \"localhost\" must be the address of Envoy's admin interface":       {"-admin", "localhost"},
		"connection refused": {"-admin", "http://127.0.0.1:1"},
		"gives: " + refuses.URL + "/heap_dump answers 404 Not Found, not 200":          {"-admin", refuses.URL},
		"gives from 1.39 on: " + refuses.URL + "/peak_heap_dump answers 404 Not Found": {"-peak", "-admin", refuses.URL},
	} {
		out, errs := call(t, 1, append([]string{"heap", "-cache", "none"}, args...)...)
		require.Empty(t, out)
		require.Contains(t, errs, want)
		require.Equal(t, 1, strings.Count(errs, "\n"), "one line: %q", errs)
		require.True(t, strings.HasPrefix(errs, "highwater heap: "), errs)
	}
}

// Of an Envoy whose admin interface takes the connection and says nothing, /debug/heap says so in
// time, and what else is asked is answered meanwhile.
func TestHeapPage(t *testing.T) {
	hanging := make(chan struct{})
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "heap_dump") {
			select {
			case <-hanging:
			case <-r.Context().Done():
			}
			return
		}
		_, _ = w.Write([]byte(`{"allocated":"5","heap_size":"40000000","pageheap_unmapped":"0","pageheap_free":"0"}`))
	}))
	defer admin.Close()
	defer close(hanging)
	_, web, config, log := servingFile(t, settings{grpc: "127.0.0.1:0", http: "127.0.0.1:0"})
	require.NoError(t, os.WriteFile(config, []byte("budget: {limit: 200MiB}\nenvoy: {pid: 4194303}\nmemory: {url: \""+admin.URL+"\"}\n"), 0o600))
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "is in force") }, 10*time.Second, 10*time.Millisecond)
	client := &http.Client{Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	answered := make(chan *http.Response, 1)
	go func() {
		res, err := client.Get("http://" + web + "/debug/heap")
		if err != nil {
			t.Error(err)
			close(answered)
			return
		}
		answered <- res
	}()
	began := time.Now()
	for range 10 {
		res, err := client.Get("http://" + web + "/status")
		require.NoError(t, err)
		res.Body.Close()
		require.Equal(t, http.StatusOK, res.StatusCode)
	}
	require.Less(t, time.Since(began), heapPageTimeout)
	res := <-answered
	require.NotNil(t, res)
	defer res.Body.Close()
	require.Equal(t, http.StatusBadGateway, res.StatusCode)
	var text bytes.Buffer
	_, err := text.ReadFrom(res.Body)
	require.NoError(t, err)
	require.Contains(t, text.String(), "no heap dump, which an Envoy with google's TCMalloc gives: no answer in time")
}
