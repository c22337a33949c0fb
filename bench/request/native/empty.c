// A dynamic module for the HTTP filter that does nothing: what Envoy's part of dynamic modules
// costs. The hooks are those of ABI v0.2.0; what each returns lets the request go on.
#include <stddef.h>
#include <stdint.h>

#define ON(name) envoy_dynamic_module_on_##name
#define NOTHING(name) \
	void ON(name)(void) {}
#define GOES_ON(name) \
	int ON(name)(void) { return 0; }

const char *ON(program_init)(void) { return "v0.2.0"; }
const void *ON(http_filter_config_new)(void *c) { return c; }
const void *ON(http_filter_new)(void *config, void *f) { return f; }
NOTHING(http_filter_config_destroy)
GOES_ON(http_filter_request_headers)
GOES_ON(http_filter_request_body)
GOES_ON(http_filter_request_trailers)
GOES_ON(http_filter_response_headers)
GOES_ON(http_filter_response_body)
GOES_ON(http_filter_response_trailers)
NOTHING(http_filter_stream_complete)
NOTHING(http_filter_destroy)
NOTHING(http_filter_scheduled)
NOTHING(http_filter_config_scheduled)
NOTHING(http_filter_config_http_callout_done)
NOTHING(http_filter_http_callout_done)
NOTHING(http_filter_http_stream_headers)
NOTHING(http_filter_http_stream_data)
NOTHING(http_filter_http_stream_trailers)
NOTHING(http_filter_http_stream_complete)
NOTHING(http_filter_http_stream_reset)
NOTHING(http_filter_downstream_above_write_buffer_high_watermark)
NOTHING(http_filter_downstream_below_write_buffer_low_watermark)
