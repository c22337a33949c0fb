// Package httptext reads what HTTP messages say of themselves, alike for all faces.
package httptext

import (
	"strings"

	"github.com/highwater-envoy/highwater/internal/budget"
)

// IsGRPC says whether a message of this content-type is one of gRPC.
func IsGRPC(contentType string) bool { return strings.HasPrefix(contentType, "application/grpc") }

// IsUpload says whether a request of this method is likely to have a body.
func IsUpload(method string) bool {
	return method == "POST" || method == "PUT" || method == "PATCH"
}

// HasNoBody says whether a request of this method is likely to have none.
func HasNoBody(method string) bool {
	return method == "GET" || method == "HEAD" || method == "DELETE" || method == "OPTIONS"
}

// maxLength is the longest message that is told apart: a longer one has no room either, and what is
// reckoned with it must not overflow.
const maxLength = budget.Unlimited

// ContentLength is what a content-length announces, bytes, and no more than maxLength;
// budget.Unknown where there is none, or it is no length (RFC 9110, 8.6: digits alone). strconv
// reads what numbers may be like elsewhere, at ten times the code.
func ContentLength(text string) (n int64) {
	if text == "" {
		return budget.Unknown
	}
	for i := range len(text) {
		digit := int64(text[i]) - '0'
		if digit < 0 || digit > 9 {
			return budget.Unknown
		}
		n = min(10*n+digit, maxLength)
	}
	return n
}

// WithoutPort is the address of 127.0.0.1:1234 or [::1]:1234; what has no port, such as a pipe,
// stays.
func WithoutPort(address string) string {
	if port := strings.LastIndexByte(address, ':'); port >= 0 {
		return address[:port]
	}
	return address
}
