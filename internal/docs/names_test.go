package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What documents name is there: metrics, keys of the configuration, targets of make, and tests. The
// references themselves are compared with the code where that is: internal/guard,
// internal/observer, extproc and cmd/highwater.

// inCode are the parts of a document that are code: lines, and spans of the rest.
func (d document) inCode() (all []string) {
	for _, l := range d.lines {
		if l.kind == code {
			all = append(all, l.text)
		}
	}
	for _, span := range codeSpan.FindAllString(d.withoutCode(), -1) {
		all = append(all, strings.Trim(span, "`"))
	}
	return all
}

// rows are the names in the first column of the tables of a reference, without what is in braces.
func rows(t *testing.T, path string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(t), path))
	require.NoError(t, err)
	all := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_.]+)").FindAllStringSubmatch(string(text), -1) {
		all[m[1]] = true
	}
	require.Greater(t, len(all), 30, path)
	return all
}

func TestMetricsExist(t *testing.T) {
	known := map[string]bool{}
	for name := range rows(t, "docs/reference/metrics.md") {
		known[name] = true
		name, label, labelled := strings.Cut(name, ".reason.")
		known[name] = true
		if labelled { // as it is without stats_tags
			known[name+"_reason_"+label] = true
		}
		known[strings.Replace(name, "_milliseconds", "_seconds", 1)] = true // on highwater serve
	}
	names := regexp.MustCompile(`\b(highwater_[a-z_]*[a-z]|grpc_server_[a-z_]*[a-z])\b`)
	suffix := regexp.MustCompile(`_(bucket|sum|count)$`)
	for _, d := range documents(t) {
		for _, l := range d.lines {
			for _, name := range names.FindAllString(l.text, -1) {
				if !known[name] && !known[suffix.ReplaceAllString(name, "")] {
					t.Errorf("%s:%d: there is no metric %s", d.path, l.n, name)
				}
			}
		}
	}
}

func TestKeysExist(t *testing.T) {
	known := map[string]bool{}
	for key := range rows(t, "docs/reference/configuration.md") {
		for known[key] = true; strings.Contains(key, "."); known[key] = true {
			key = key[:strings.LastIndexByte(key, '.')]
		}
	}
	known["exempt.path_prefix"] = true // of an entry of exempt
	key := regexp.MustCompile(`^(budget|buffers|costs|fairness|exempt|throttle|reject|memory|trace|debug|release)(\.[a-z0-9_]+)+`)
	notOurs := regexp.MustCompile(`^memory\.(events|high|json|kmem|limit_in_bytes|max|stat|usage_in_bytes)`) // files of cgroups and of bundles
	checked := 0
	for _, d := range documents(t) {
		for _, text := range d.inCode() {
			name := key.FindString(text)
			if name == "" || notOurs.MatchString(name) {
				continue
			}
			if checked++; !known[name] {
				t.Errorf("%s: there is no key %s", d.path, name)
			}
		}
	}
	require.Greater(t, checked, 100, "the keys are not found")
}

func TestMakeTargetsExist(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "Makefile"))
	require.NoError(t, err)
	known := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z0-9./-]*):`).FindAllStringSubmatch(string(text), -1) {
		known[m[1]] = true
	}
	call := regexp.MustCompile(`(?:^|[ "(])make((?: +-s| +[A-Z]+=\S+| +[a-z][a-z0-9./-]*)+)`)
	checked := 0
	for _, d := range documents(t) {
		for _, text := range d.inCode() {
			text, _, _ = strings.Cut(text, "#")
			for _, m := range call.FindAllStringSubmatch(text, -1) {
				for target := range strings.FieldsSeq(m[1]) {
					if target == "-s" || strings.Contains(target, "=") {
						continue
					}
					if checked++; !known[target] {
						t.Errorf("%s: there is no make %s", d.path, target)
					}
				}
			}
		}
	}
	require.Greater(t, checked, 20, "the targets are not found")
}

// functions are the tests, fuzz tests and benchmarks by their directory, with slashes.
func functions(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w*)\(`)
	for _, pattern := range []string{"*", "*/*", "*/*/*", "*/*/*/*"} {
		files, err := filepath.Glob(filepath.Join(root(t), pattern+"_test.go"))
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			dir, err := filepath.Rel(root(t), filepath.Dir(file))
			require.NoError(t, err)
			for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
				all[filepath.ToSlash(dir)] = append(all[filepath.ToSlash(dir)], m[1])
			}
		}
	}
	return all
}

// What go test is told to run is there, in the package that it is told to test; and whoever names a
// test names one that is there.
func TestTestsExist(t *testing.T) {
	all := functions(t)
	exists := func(dir string, pattern *regexp.Regexp) bool {
		for of, names := range all {
			for _, name := range names {
				if (dir == "" || dir == of) && pattern.MatchString(name) {
					return true
				}
			}
		}
		return false
	}
	run := regexp.MustCompile(`-run[ =]('[^']*'|\S+)`)
	folder := regexp.MustCompile(`go test [^#]*?\./([a-z0-9/]+)`)
	placeholder := regexp.MustCompile(`TestName|\^\$`)
	name := regexp.MustCompile(`\b(Test|Fuzz|Benchmark)[A-Z]\w*`)
	checked := 0
	for _, d := range documents(t) {
		for _, text := range d.inCode() {
			m := run.FindStringSubmatch(text)
			if m == nil || placeholder.MatchString(m[1]) {
				continue
			}
			dir := ""
			if in := folder.FindStringSubmatch(text); in != nil {
				dir = strings.TrimSuffix(in[1], "/")
			}
			for pattern := range strings.SplitSeq(strings.Trim(m[1], `'"`), "|") {
				if checked++; !exists(dir, regexp.MustCompile(pattern)) {
					t.Errorf("%s: no test matches %q: %s", d.path, pattern, text)
				}
			}
		}
		for _, l := range d.lines {
			for _, test := range name.FindAllString(l.text, -1) {
				if !placeholder.MatchString(test) && !exists("", regexp.MustCompile("^"+test)) {
					t.Errorf("%s:%d: there is no %s", d.path, l.n, test)
				}
			}
		}
	}
	require.Greater(t, checked, 10, "the calls of go test are not found")
}
