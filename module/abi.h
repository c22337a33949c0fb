// What the module uses of Envoy's dynamic module ABI, v0.2.0 (Envoy 1.40; the same in 1.39), in own
// declarations: source/extensions/dynamic_modules/abi/abi.h of Envoy defines it. Callbacks are weak
// symbols: one that an Envoy lacks is NULL, and hw_missing tells, before any is called.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CB(name) envoy_dynamic_module_callback_##name
#define HW_CALLBACK(type) extern __attribute__((weak)) type
#define ON(name) envoy_dynamic_module_on_##name

// Text of either side. Envoy's is valid until the hook returns.
typedef struct {
	const char *ptr;
	size_t length;
} hw_text;

typedef struct {
	const char *key;
	size_t key_length;
	const char *value;
	size_t value_length;
} hw_header;

// Enumerators of the ABI.
enum { HW_REQUEST_HEADERS = 0, HW_RESPONSE_HEADERS = 2 };   // http_header_type
enum { HW_RECEIVED_REQUEST = 0, HW_RECEIVED_RESPONSE = 2 }; // http_body_type
enum { HW_CONTINUE = 0, HW_STOP = 1 };                      // of all hooks
enum { HW_STOP_ALL_AND_WATERMARK = 4 };                     // of request headers
enum { HW_STOP_AND_WATERMARK = 2, HW_STOP_WITHOUT_BUFFERING = 3 }; // of bodies
enum { HW_CLOSE_WITHOUT_FLUSH = 1 };                        // network_connection_close_type
enum { HW_CONNECTION_OPEN = 0 };                            // network_connection_state
enum { HW_LOCAL_RESET = 0 };                                // http_filter_stream_reset_reason
enum { HW_LOG_INFO = 2, HW_LOG_WARNING = 3, HW_LOG_ERROR = 4, HW_LOG_CRITICAL = 5 };
enum {                                                      // attribute_id
	HW_REQUEST_METHOD = 4,
	HW_REQUEST_PROTOCOL = 10,
	HW_REQUEST_TOTAL_SIZE = 14,
	HW_SOURCE_ADDRESS = 24,
	HW_DESTINATION_ADDRESS = 26,
	HW_CONNECTION_ID = 28,
	HW_CLUSTER_NAME = 57,
	HW_ROUTE_NAME = 61,
	HW_VIRTUAL_HOST_NAME = 63,
};

// The process.
HW_CALLBACK(void) CB(log)(int level, hw_text text);
HW_CALLBACK(uint32_t) CB(get_concurrency)(void);
HW_CALLBACK(bool) CB(is_validation_mode)(void);

// An HTTP stream: f is its filter in Envoy.
HW_CALLBACK(bool) CB(http_get_header)(void *f, int type, hw_text key, hw_text *value, size_t index, size_t *n);
HW_CALLBACK(bool) CB(http_filter_get_attribute_string)(void *f, int id, hw_text *value);
HW_CALLBACK(bool) CB(http_filter_get_attribute_int)(void *f, int id, uint64_t *value);
HW_CALLBACK(size_t) CB(http_get_body_size)(void *f, int type);
HW_CALLBACK(void) CB(http_send_response)(void *f, uint32_t status, hw_header *h, size_t n, hw_text body, hw_text details);
HW_CALLBACK(void) CB(http_send_response_headers)(void *f, hw_header *h, size_t n, bool end);
HW_CALLBACK(void) CB(http_filter_reset_stream)(void *f, int reason, hw_text details);
HW_CALLBACK(void) CB(http_filter_continue_decoding)(void *f);
HW_CALLBACK(void) CB(http_filter_continue_encoding)(void *f);
HW_CALLBACK(uint32_t) CB(http_filter_get_worker_index)(void *f);
HW_CALLBACK(bool) CB(http_set_filter_state_bytes)(void *f, hw_text key, hw_text value);
HW_CALLBACK(uint64_t) CB(http_get_buffer_limit)(void *f);
HW_CALLBACK(void) CB(http_set_buffer_limit)(void *f, uint64_t n);
HW_CALLBACK(void *) CB(http_filter_scheduler_new)(void *f);
HW_CALLBACK(void) CB(http_filter_scheduler_commit)(void *scheduler, uint64_t event);
HW_CALLBACK(void) CB(http_filter_scheduler_delete)(void *scheduler);

// A configuration of the HTTP filter.
HW_CALLBACK(void *) CB(http_filter_config_scheduler_new)(void *c);
HW_CALLBACK(void) CB(http_filter_config_scheduler_commit)(void *scheduler, uint64_t event);
HW_CALLBACK(void) CB(http_filter_config_scheduler_delete)(void *scheduler);
HW_CALLBACK(int) CB(http_filter_config_http_callout)(void *c, uint64_t *id, hw_text cluster, hw_header *h, size_t n, hw_text body, uint64_t timeout_ms);
HW_CALLBACK(int) CB(http_filter_config_define_counter)(void *c, hw_text name, hw_text *labels, size_t n, size_t *id);
HW_CALLBACK(int) CB(http_filter_config_define_gauge)(void *c, hw_text name, hw_text *labels, size_t n, size_t *id);
HW_CALLBACK(int) CB(http_filter_config_define_histogram)(void *c, hw_text name, hw_text *labels, size_t n, size_t *id);
HW_CALLBACK(int) CB(http_filter_config_increment_counter)(void *c, size_t id, hw_text *labels, size_t n, uint64_t by);
HW_CALLBACK(int) CB(http_filter_config_set_gauge)(void *c, size_t id, hw_text *labels, size_t n, uint64_t value);
HW_CALLBACK(int) CB(http_filter_config_record_histogram_value)(void *c, size_t id, hw_text *labels, size_t n, uint64_t value);

// A configuration of the network filter.
HW_CALLBACK(int) CB(network_filter_config_define_counter)(void *c, hw_text name, size_t *id);
HW_CALLBACK(int) CB(network_filter_config_define_gauge)(void *c, hw_text name, size_t *id);
HW_CALLBACK(int) CB(network_filter_config_define_histogram)(void *c, hw_text name, size_t *id);
HW_CALLBACK(int) CB(network_filter_config_increment_counter)(void *c, size_t id, uint64_t by);
HW_CALLBACK(int) CB(network_filter_config_set_gauge)(void *c, size_t id, uint64_t value);
HW_CALLBACK(int) CB(network_filter_config_record_histogram_value)(void *c, size_t id, uint64_t value);

// A connection: f is its network filter in Envoy.
HW_CALLBACK(uint64_t) CB(network_filter_get_connection_id)(void *f);
HW_CALLBACK(uint32_t) CB(network_filter_get_worker_index)(void *f);
HW_CALLBACK(int) CB(network_filter_get_connection_state)(void *f);
HW_CALLBACK(bool) CB(network_filter_is_ssl)(void *f);
HW_CALLBACK(bool) CB(network_filter_get_remote_address)(void *f, hw_text *address, uint32_t *port);
HW_CALLBACK(bool) CB(network_filter_get_local_address)(void *f, hw_text *address, uint32_t *port);
HW_CALLBACK(bool) CB(network_filter_get_attribute_string)(void *f, int id, hw_text *value);
HW_CALLBACK(size_t) CB(network_filter_get_read_buffer_chunks_size)(void *f);
HW_CALLBACK(bool) CB(network_filter_get_read_buffer_chunks)(void *f, hw_text *chunks);
HW_CALLBACK(size_t) CB(network_filter_get_write_buffer_chunks_size)(void *f);
HW_CALLBACK(bool) CB(network_filter_get_write_buffer_chunks)(void *f, hw_text *chunks);
HW_CALLBACK(bool) CB(network_filter_drain_read_buffer)(void *f, size_t n);
HW_CALLBACK(bool) CB(network_filter_drain_write_buffer)(void *f, size_t n);
HW_CALLBACK(uint32_t) CB(network_filter_get_buffer_limit)(void *f);
HW_CALLBACK(void) CB(network_filter_set_buffer_limits)(void *f, uint32_t n);
HW_CALLBACK(int) CB(network_filter_read_disable)(void *f, bool disable);
HW_CALLBACK(void) CB(network_filter_close)(void *f, int how);
HW_CALLBACK(void *) CB(network_filter_scheduler_new)(void *f);
HW_CALLBACK(void) CB(network_filter_scheduler_commit)(void *scheduler, uint64_t event);
HW_CALLBACK(void) CB(network_filter_scheduler_delete)(void *scheduler);

// A connection that has been accepted and has no filter chain yet: f is its listener filter.
HW_CALLBACK(uint32_t) CB(listener_filter_get_worker_index)(void *f);
HW_CALLBACK(void) CB(listener_filter_close_socket)(void *f, hw_text details);
HW_CALLBACK(void) CB(listener_filter_continue_filter_chain)(void *f, bool success);

// The bootstrap extension.
HW_CALLBACK(void) CB(bootstrap_extension_config_signal_init_complete)(void *c);
HW_CALLBACK(bool) CB(bootstrap_extension_register_admin_handler)(void *c, hw_text prefix, hw_text help, bool removable, bool mutates);
HW_CALLBACK(void) CB(bootstrap_extension_admin_set_response)(void *c, hw_text body);

// hw_stream is what C keeps of a stream of the HTTP filter. They are used again.
typedef struct hw_stream {
	void *envoy;      // its filter there
	uintptr_t config; // whose it is: what hwConfigNew returned
	uint32_t worker;
	uint32_t slot; // of its part in Go, while it is open
	bool open;     // Go is to be told of it
	bool begun;    // of its request's body something has come
	bool metered;  // what passes of its response may have to wait until its client takes it
	int64_t *free; // of its response so much may pass without Go, while it is open; in Go's memory, pinned
	struct hw_stream *next;
} hw_stream;

// hw_connection is what C keeps of a connection of the network filter. They are used again.
typedef struct hw_connection {
	void *envoy;
	uintptr_t config;
	uint32_t worker;
	uint32_t slot;
	bool open;
	bool http; // what is written to it is counted by the HTTP filter
	bool flow; // and it is HTTP/2, whose frames are followed
	struct hw_connection *next;
} hw_connection;

// What becomes of a connection that was accepted.
enum { HW_REFUSE = 0, HW_ACCEPT = 1, HW_ACCEPT_FOR_OLDEST = 2 };

// What a connection's scheduler has come for.
enum { HW_TICK = 0, HW_LET_ON = 1 };

// hw_reading is what the allocator says of itself, each modulo 2³²: the fields of mallinfo() are
// ints.
typedef struct {
	uint32_t heap, allocated, free;
} hw_reading;

// hw_find_mallinfo says whether this Envoy has a mallinfo() of its own allocator: then hw_read asks
// it. That of the C library, which is always there, knows nothing of what Envoy has.
extern bool hw_find_mallinfo(void);
extern hw_reading hw_read(void);

// hw_tighten has the calling thread's timers be on time, though those of Go's are late by some ms:
// see clock.c. False: theirs are not.
extern bool hw_tighten(void);

// hw_wait waits for so long, or until hw_ring.
extern void hw_wait(int64_t ns);
extern void hw_ring(void);

// hw_restore has filters hold as much of a stream as the listener lets them, where Envoy took the
// lowered limit of its connection, read, for it. Else its route or its protocol has set it, and it
// stays. It returns what they may hold; 0 is without a limit, as for the listener.
extern uint64_t hw_restore(void *f, uint64_t read, uint64_t own);

// Metrics of a configuration: of the network filter, or of the HTTP filter.
enum { HW_COUNTER, HW_GAUGE, HW_HISTOGRAM };
extern int hw_define(int what, bool network, void *c, hw_text name, size_t *id);
extern void hw_set(int what, bool network, void *c, size_t id, uint64_t value);

// hw_chunks are the pieces of what a connection is just reading or writing. It says how many they
// are; with more than most it gives none.
extern size_t hw_chunks(void *f, bool written, hw_text *chunks, size_t most);

// hw_missing is the name of a callback that this Envoy lacks; NULL = it has all.
extern const char *hw_missing(void);
