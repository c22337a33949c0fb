package envoyconfig

import (
	"fmt"
	"regexp"
	"strings"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// forwards says whether the filter tells the server of a header, by its name in lower case; if not,
// what to write.
func forwards(r *filterv3.HeaderForwardingRules, header string) (ok bool, write string) {
	if list := r.GetDisallowedHeaders().GetPatterns(); anyMatches(list, header, false) {
		return false, "let forward_rules.disallowed_headers not match it"
	}
	if list := r.GetAllowedHeaders().GetPatterns(); len(list) > 0 && !anyMatches(list, header, true) {
		return false, fmt.Sprintf("add {exact: %q} to forward_rules.allowed_headers.patterns", header)
	}
	return true, ""
}

func anyMatches(list []*matcherv3.StringMatcher, header string, unknown bool) bool {
	for _, m := range list {
		if matches(m, header, unknown) {
			return true
		}
	}
	return false
}

// matches is Envoy's StringMatcher. unknown is the answer where only Envoy knows: an extension, or
// what it refuses.
func matches(m *matcherv3.StringMatcher, header string, unknown bool) bool {
	fold := func(pattern string) string {
		if m.GetIgnoreCase() {
			return strings.ToLower(pattern)
		}
		return pattern
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return header == fold(p.Exact)
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(header, fold(p.Prefix))
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(header, fold(p.Suffix))
	case *matcherv3.StringMatcher_Contains:
		return strings.Contains(header, fold(p.Contains))
	case *matcherv3.StringMatcher_SafeRegex:
		if whole, err := regexp.Compile("^(?:" + p.SafeRegex.GetRegex() + ")$"); err == nil { // Envoy's must match all of it too
			return whole.MatchString(header)
		}
	}
	return unknown
}

// badRegexes are the patterns that Envoy would refuse, with the reason.
func badRegexes(r *filterv3.HeaderForwardingRules) (bad []string) {
	for _, list := range []struct {
		key      string
		patterns []*matcherv3.StringMatcher
	}{{"allowed_headers", r.GetAllowedHeaders().GetPatterns()}, {"disallowed_headers", r.GetDisallowedHeaders().GetPatterns()}} {
		for i, m := range list.patterns {
			if _, err := regexp.Compile(m.GetSafeRegex().GetRegex()); err != nil {
				bad = append(bad, fmt.Sprintf("forward_rules.%s.patterns[%d].safe_regex: %v", list.key, i, err))
			}
		}
	}
	return bad
}
