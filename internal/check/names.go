package check

// all are the names of findings, in the order of docs/reference/check.md.
var all = []string{
	// what was read
	"unreadable", "unknown-field", "skipped", "dynamic",
	// Highwater's filters
	"no-guard", "unguarded-listener", "no-network-filter", "no-http-filter", "root-id", "filter-disabled", "order",
	"configuration", "failure-policy", "vm-id", "shared-keys", "buffers-low", "buffers-high",
	"readings", "readings-elsewhere", "admin", "allow-paths",
	"unnamed-routes", "use-remote-address", "normalize-path", "circuit-breakers",
	"limit-over-container", "limit-under-base", "soft-memory-limit",
	// the server beside Envoy
	"server-unknown", "message-timeout", "failure-mode", "observability-mode", "immediate-response", "processing-mode",
	"mode-override", "request-attributes", "forward-rules", "grpc-service", "server-http2", "server-breaker",
	// memory
	"holds-bodies", "others-code", "retries", "mirrors", "decompressor", "compressor", "headers", "silent-connections", "raw-tcp",
	"http3", "http2-window", "http2-connection-window", "http2-streams", "http2-upstream-window", "listener-buffer", "cluster-buffer",
	"send-buffer", "linger", "connections", "base", "fixed-heap",
}

func names() []string { return all }
