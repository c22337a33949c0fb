package rtti

import (
	"strings"

	"github.com/ianlancetaylor/demangle"
)

// maxShown is how long a name may become: templates of templates have names of kilobytes.
const maxShown = 240

// TypeName is a type's name as people know it, of the mangled one. A function object is called by
// the function that made it, and what keeps an object for shared pointers by that object: for who
// looks for memory, the wrapper is nobody.
func TypeName(mangled string) string {
	const prefix = "typeinfo for "
	name, err := demangle.ToString("_ZTI"+mangled, demangle.NoEnclosingParams, demangle.LLVMStyle, demangle.MaxLength(13))
	if err != nil || !strings.HasPrefix(name, prefix) {
		return shorten(mangled)
	}
	return shorten(unwrap(plain(name[len(prefix):])))
}

// FunctionName is a function's name as people know it, without its parameters.
func FunctionName(mangled string) string {
	return shorten(plain(demangle.Filter(mangled, demangle.NoParams, demangle.NoEnclosingParams, demangle.LLVMStyle, demangle.MaxLength(13))))
}

// inline namespaces, by which libraries tell their versions apart.
var versions = strings.NewReplacer("std::__1::", "std::", "std::__ndk1::", "std::", "std::__cxx11::", "std::")

func plain(name string) string {
	name = versions.Replace(name)
	for {
		at := strings.Index(name, "absl::lts_")
		if at < 0 {
			break
		}
		version := name[at+len("absl::"):]
		end := strings.Index(version, "::")
		if end < 0 {
			break
		}
		name = name[:at] + "absl::" + version[end+2:]
	}
	return strings.ReplaceAll(name, "std::basic_string<char, std::char_traits<char>, std::allocator<char>>", "std::string")
}

// wrappers are templates whose first argument is what they are there for.
var wrappers = []string{"std::__function::__func<", "std::__shared_ptr_emplace<", "std::__shared_ptr_pointer<", "std::_Sp_counted_ptr_inplace<"}

func unwrap(name string) string {
	for _, w := range wrappers {
		if inner, ok := strings.CutPrefix(name, w); ok {
			inner = strings.TrimSuffix(firstArgument(inner), "*")
			// A pointer to a function says which type it has, and not which function it is.
			if !strings.Contains(inner, "(*)") {
				return lambda(inner)
			}
		}
	}
	return lambda(name)
}

// firstArgument is what stands before the first comma, or the end of the list, of brackets.
func firstArgument(list string) string {
	depth := 0
	for i, r := range list {
		switch r {
		case '<', '(', '[', '{':
			depth++
		case '>', ')', ']', '}':
			if depth--; depth < 0 {
				return list[:i]
			}
		case ',':
			if depth == 0 {
				return list[:i]
			}
		}
	}
	return list
}

// lambda is the name of a function object: compilers number those of a function, $_3 or 'lambda2'.
func lambda(name string) string {
	for _, mark := range []string{"::$_", "::'lambda"} {
		if at := strings.LastIndex(name, mark); at >= 0 && !strings.Contains(name[at+2:], "::") {
			return name[:at] + "::lambda"
		}
		if at := strings.Index(name, mark); at >= 0 && strings.HasPrefix(mark, "::'") {
			return name[:at] + "::lambda"
		}
	}
	return name
}

// shorten drops what makes a name too long: first what is in its last brackets, then its end.
func shorten(name string) string {
	if len(name) <= maxShown {
		return name
	}
	if at := strings.IndexByte(name, '<'); at > 0 && at < maxShown {
		return name[:at] + "<...>"
	}
	return name[:maxShown] + "..."
}
