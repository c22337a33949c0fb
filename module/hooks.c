// The event hooks of the ABI. Where nothing is to be decided they end here; else they call Go, and
// return what that returns.
#define _GNU_SOURCE
#include "abi.h"

#include <dlfcn.h>
#include <malloc.h>
#include <stdlib.h>

#include "_cgo_export.h"

#define TEXT(s) ((hw_text){s, sizeof s - 1})

// What a worker's thread has to be used again: both grow to as many as there were at a time.
static __thread hw_stream *streams;
static __thread hw_connection *connections;

const char *ON(program_init)(void) {
	hwInit(CB(get_concurrency) == NULL ? 0 : CB(get_concurrency)(), !hw_tighten());
	return "v0.2.0";
}

// What is called of Envoy.
static const struct {
	const char *name;
	void *callback;
} needed[] = {
	{"log", (void *)CB(log)},
	{"get_concurrency", (void *)CB(get_concurrency)},
	{"is_validation_mode", (void *)CB(is_validation_mode)},
	{"http_get_header", (void *)CB(http_get_header)},
	{"http_filter_get_attribute_string", (void *)CB(http_filter_get_attribute_string)},
	{"http_filter_get_attribute_int", (void *)CB(http_filter_get_attribute_int)},
	{"http_get_body_size", (void *)CB(http_get_body_size)},
	{"http_send_response", (void *)CB(http_send_response)},
	{"http_send_response_headers", (void *)CB(http_send_response_headers)},
	{"http_filter_reset_stream", (void *)CB(http_filter_reset_stream)},
	{"http_filter_continue_decoding", (void *)CB(http_filter_continue_decoding)},
	{"http_filter_continue_encoding", (void *)CB(http_filter_continue_encoding)},
	{"http_filter_get_worker_index", (void *)CB(http_filter_get_worker_index)},
	{"http_set_filter_state_bytes", (void *)CB(http_set_filter_state_bytes)},
	{"http_get_buffer_limit", (void *)CB(http_get_buffer_limit)},
	{"http_set_buffer_limit", (void *)CB(http_set_buffer_limit)},
	{"http_filter_scheduler_new", (void *)CB(http_filter_scheduler_new)},
	{"http_filter_scheduler_commit", (void *)CB(http_filter_scheduler_commit)},
	{"http_filter_scheduler_delete", (void *)CB(http_filter_scheduler_delete)},
	{"http_filter_config_scheduler_new", (void *)CB(http_filter_config_scheduler_new)},
	{"http_filter_config_scheduler_commit", (void *)CB(http_filter_config_scheduler_commit)},
	{"http_filter_config_scheduler_delete", (void *)CB(http_filter_config_scheduler_delete)},
	{"http_filter_config_http_callout", (void *)CB(http_filter_config_http_callout)},
	{"http_filter_config_define_counter", (void *)CB(http_filter_config_define_counter)},
	{"http_filter_config_define_gauge", (void *)CB(http_filter_config_define_gauge)},
	{"http_filter_config_define_histogram", (void *)CB(http_filter_config_define_histogram)},
	{"http_filter_config_increment_counter", (void *)CB(http_filter_config_increment_counter)},
	{"http_filter_config_set_gauge", (void *)CB(http_filter_config_set_gauge)},
	{"http_filter_config_record_histogram_value", (void *)CB(http_filter_config_record_histogram_value)},
	{"network_filter_config_define_counter", (void *)CB(network_filter_config_define_counter)},
	{"network_filter_config_define_gauge", (void *)CB(network_filter_config_define_gauge)},
	{"network_filter_config_define_histogram", (void *)CB(network_filter_config_define_histogram)},
	{"network_filter_config_increment_counter", (void *)CB(network_filter_config_increment_counter)},
	{"network_filter_config_set_gauge", (void *)CB(network_filter_config_set_gauge)},
	{"network_filter_config_record_histogram_value", (void *)CB(network_filter_config_record_histogram_value)},
	{"network_filter_get_connection_id", (void *)CB(network_filter_get_connection_id)},
	{"network_filter_get_worker_index", (void *)CB(network_filter_get_worker_index)},
	{"network_filter_get_connection_state", (void *)CB(network_filter_get_connection_state)},
	{"network_filter_is_ssl", (void *)CB(network_filter_is_ssl)},
	{"network_filter_get_remote_address", (void *)CB(network_filter_get_remote_address)},
	{"network_filter_get_local_address", (void *)CB(network_filter_get_local_address)},
	{"network_filter_get_attribute_string", (void *)CB(network_filter_get_attribute_string)},
	{"network_filter_get_read_buffer_chunks_size", (void *)CB(network_filter_get_read_buffer_chunks_size)},
	{"network_filter_get_read_buffer_chunks", (void *)CB(network_filter_get_read_buffer_chunks)},
	{"network_filter_get_write_buffer_chunks_size", (void *)CB(network_filter_get_write_buffer_chunks_size)},
	{"network_filter_get_write_buffer_chunks", (void *)CB(network_filter_get_write_buffer_chunks)},
	{"network_filter_drain_read_buffer", (void *)CB(network_filter_drain_read_buffer)},
	{"network_filter_drain_write_buffer", (void *)CB(network_filter_drain_write_buffer)},
	{"network_filter_get_buffer_limit", (void *)CB(network_filter_get_buffer_limit)},
	{"network_filter_set_buffer_limits", (void *)CB(network_filter_set_buffer_limits)},
	{"network_filter_read_disable", (void *)CB(network_filter_read_disable)},
	{"network_filter_close", (void *)CB(network_filter_close)},
	{"network_filter_scheduler_new", (void *)CB(network_filter_scheduler_new)},
	{"network_filter_scheduler_commit", (void *)CB(network_filter_scheduler_commit)},
	{"network_filter_scheduler_delete", (void *)CB(network_filter_scheduler_delete)},
	{"listener_filter_get_worker_index", (void *)CB(listener_filter_get_worker_index)},
	{"listener_filter_close_socket", (void *)CB(listener_filter_close_socket)},
	{"listener_filter_continue_filter_chain", (void *)CB(listener_filter_continue_filter_chain)},
	{"bootstrap_extension_config_signal_init_complete", (void *)CB(bootstrap_extension_config_signal_init_complete)},
	{"bootstrap_extension_register_admin_handler", (void *)CB(bootstrap_extension_register_admin_handler)},
	{"bootstrap_extension_admin_set_response", (void *)CB(bootstrap_extension_admin_set_response)},
};

const char *hw_missing(void) {
	for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
		if (needed[i].callback == NULL) {
			return needed[i].name;
		}
	}
	return NULL;
}

// Metrics.

int hw_define(int what, bool network, void *c, hw_text name, size_t *id) {
	if (network) {
		return what == HW_COUNTER ? CB(network_filter_config_define_counter)(c, name, id)
		       : what == HW_GAUGE ? CB(network_filter_config_define_gauge)(c, name, id)
		                          : CB(network_filter_config_define_histogram)(c, name, id);
	}
	return what == HW_COUNTER ? CB(http_filter_config_define_counter)(c, name, NULL, 0, id)
	       : what == HW_GAUGE ? CB(http_filter_config_define_gauge)(c, name, NULL, 0, id)
	                          : CB(http_filter_config_define_histogram)(c, name, NULL, 0, id);
}

void hw_set(int what, bool network, void *c, size_t id, uint64_t value) {
	if (network) {
		what == HW_COUNTER ? CB(network_filter_config_increment_counter)(c, id, value)
		: what == HW_GAUGE ? CB(network_filter_config_set_gauge)(c, id, value)
		                   : CB(network_filter_config_record_histogram_value)(c, id, value);
		return;
	}
	what == HW_COUNTER ? CB(http_filter_config_increment_counter)(c, id, NULL, 0, value)
	: what == HW_GAUGE ? CB(http_filter_config_set_gauge)(c, id, NULL, 0, value)
	                   : CB(http_filter_config_record_histogram_value)(c, id, NULL, 0, value);
}

// The allocator.

static struct mallinfo (*envoys_mallinfo)(void);

bool hw_find_mallinfo(void) {
	Dl_info found, envoy;
	void *f = dlsym(RTLD_DEFAULT, "mallinfo"), *of_envoy = dlsym(RTLD_DEFAULT, "envoy_dynamic_module_callback_log");
	if (f == NULL || of_envoy == NULL || !dladdr(f, &found) || !dladdr(of_envoy, &envoy) || found.dli_fbase != envoy.dli_fbase) {
		return false;
	}
	envoys_mallinfo = (struct mallinfo(*)(void))f;
	return true;
}

hw_reading hw_read(void) {
	struct mallinfo m = envoys_mallinfo();
	return (hw_reading){(uint32_t)m.arena, (uint32_t)m.uordblks, (uint32_t)m.fordblks};
}

uint64_t hw_restore(void *f, uint64_t read, uint64_t own) {
	uint64_t limit = CB(http_get_buffer_limit)(f);
	if (limit == read && read != own) {
		CB(http_set_buffer_limit)(f, own);
		limit = own;
	}
	return limit;
}

size_t hw_chunks(void *f, bool written, hw_text *chunks, size_t most) {
	size_t n = written ? CB(network_filter_get_write_buffer_chunks_size)(f) : CB(network_filter_get_read_buffer_chunks_size)(f);
	if (n == 0 || n > most) {
		return n;
	}
	bool there = written ? CB(network_filter_get_write_buffer_chunks)(f, chunks) : CB(network_filter_get_read_buffer_chunks)(f, chunks);
	return there ? n : 0;
}

// The HTTP filter.

// content_length is that of the message, -1 where it has none that is a number (RFC 9110, 8.6).
// What would not fit is as good as the most that does.
static int64_t content_length(void *f, int type) {
	hw_text v = {0};
	if (!CB(http_get_header)(f, type, TEXT("content-length"), &v, 0, NULL) || v.length == 0) {
		return -1;
	}
	int64_t n = 0;
	for (size_t i = 0; i < v.length; i++) {
		int digit = v.ptr[i] - '0';
		if (digit < 0 || digit > 9) {
			return -1;
		}
		n = n > (INT64_MAX - digit) / 10 ? INT64_MAX : 10 * n + digit;
	}
	return n;
}

const void *ON(http_filter_config_new)(void *c, hw_text name, hw_text config) {
	return (const void *)hwConfigNew(c, 0, (char *)config.ptr, config.length);
}

void ON(http_filter_config_destroy)(void *config) { hwConfigDestroy((uintptr_t)config); }

const void *ON(http_filter_new)(void *config, void *f) {
	hw_stream *s = streams;
	if (s != NULL) {
		streams = s->next;
	} else if ((s = calloc(1, sizeof *s)) == NULL) {
		return NULL;
	}
	s->envoy = f, s->config = (uintptr_t)config, s->open = s->begun = s->metered = false;
	s->worker = CB(http_filter_get_worker_index)(f);
	return s;
}

int ON(http_filter_request_headers)(void *f, hw_stream *s, bool end) {
	uint64_t id = 0;
	CB(http_filter_get_attribute_int)(f, HW_CONNECTION_ID, &id);
	return hwRequestHeaders(s, id, end ? 0 : content_length(f, HW_REQUEST_HEADERS));
}

int ON(http_filter_request_body)(void *f, hw_stream *s, bool end) {
	if (!s->open) {
		return HW_CONTINUE;
	}
	if (!s->begun) { // filters that keep bodies have seen the headers by now
		s->begun = true;
		hwLimit(s, CB(http_get_buffer_limit)(f));
	}
	return hwBody(s, false, CB(http_get_body_size)(f, HW_RECEIVED_REQUEST), end);
}

int ON(http_filter_request_trailers)(void *f, hw_stream *s) {
	return s->open && hwBody(s, false, 0, true) != HW_CONTINUE ? HW_STOP : HW_CONTINUE;
}

int ON(http_filter_response_headers)(void *f, hw_stream *s, bool end) {
	return s->open ? hwResponseHeaders(s, end ? 0 : content_length(f, HW_RESPONSE_HEADERS)) : HW_CONTINUE;
}

// counts says whether so much of a response has been counted and goes on.
static int counts(hw_stream *s, size_t n, bool end) {
	// Most chunks need no booking, and then this one line of memory is all that is touched. The
	// same thread alone changes it in Go.
	if (!end && *s->free >= (int64_t)n) {
		*s->free -= (int64_t)n;
		return HW_CONTINUE;
	}
	return hwBody(s, true, n, end);
}

int ON(http_filter_response_body)(void *f, hw_stream *s, bool end) {
	if (!s->open) {
		return HW_CONTINUE;
	}
	size_t n = CB(http_get_body_size)(f, HW_RECEIVED_RESPONSE);
	int status = counts(s, n, end);
	return status == HW_CONTINUE && s->metered && s->open ? hwMeter(s, n) : status;
}

int ON(http_filter_response_trailers)(void *f, hw_stream *s) {
	if (!s->open) {
		return HW_CONTINUE;
	}
	return hwBody(s, true, 0, true) != HW_CONTINUE || (s->metered && s->open && hwHeld(s)) ? HW_STOP : HW_CONTINUE;
}

void ON(http_filter_stream_complete)(void *f, hw_stream *s) {}

void ON(http_filter_destroy)(hw_stream *s) {
	if (s->open) {
		hwStreamDone(s);
	}
	s->next = streams, streams = s;
}

void ON(http_filter_scheduled)(void *f, hw_stream *s, uint64_t event) { hwTick(s->worker); }

void ON(http_filter_config_scheduled)(void *c, void *config, uint64_t worker) { hwAsk((uintptr_t)config, worker); }

void ON(http_filter_config_http_callout_done)(void *c, void *config, uint64_t id, int result, hw_header *h, size_t n, hw_text *body, size_t chunks) {
	hwAnswer(id, result, h, n, body, chunks);
}

// Of these nothing is asked for, and Envoy wants them to be there.
void ON(http_filter_http_callout_done)(void) {}
void ON(http_filter_http_stream_headers)(void) {}
void ON(http_filter_http_stream_data)(void) {}
void ON(http_filter_http_stream_trailers)(void) {}
void ON(http_filter_http_stream_complete)(void) {}
void ON(http_filter_http_stream_reset)(void) {}
void ON(http_filter_downstream_above_write_buffer_high_watermark)(void *f, void *s) {}
void ON(http_filter_downstream_below_write_buffer_low_watermark)(void *f, void *s) {}

// The network filter.

const void *ON(network_filter_config_new)(void *c, hw_text name, hw_text config) {
	return (const void *)hwConfigNew(c, 1, (char *)config.ptr, config.length);
}

void ON(network_filter_config_destroy)(void *config) { hwConfigDestroy((uintptr_t)config); }

const void *ON(network_filter_new)(void *config, void *f) {
	hw_connection *c = connections;
	if (c != NULL) {
		connections = c->next;
	} else if ((c = calloc(1, sizeof *c)) == NULL) {
		return NULL;
	}
	c->envoy = f, c->config = (uintptr_t)config, c->open = c->http = c->flow = false;
	c->worker = CB(network_filter_get_worker_index)(f);
	return c;
}

int ON(network_filter_new_connection)(void *f, hw_connection *c) { return hwConnection(c, CB(network_filter_get_connection_id)(f)); }

int ON(network_filter_read)(void *f, hw_connection *c, size_t n, bool end) { return c->open && n > 0 ? hwRead(c, n) : HW_CONTINUE; }

int ON(network_filter_write)(void *f, hw_connection *c, size_t n, bool end) {
	if (!c->open || n == 0) {
		return HW_CONTINUE;
	}
	if (c->flow) {
		hwWrote(c);
	}
	return c->http ? HW_CONTINUE : hwWrite(c, n);
}

void ON(network_filter_event)(void *f, hw_connection *c, int event) {}

void ON(network_filter_destroy)(hw_connection *c) {
	if (c->open) {
		hwConnectionDone(c);
	}
	c->next = connections, connections = c;
}

void ON(network_filter_scheduled)(void *f, hw_connection *c, uint64_t event) {
	if (event == HW_LET_ON) {
		if (c->open) {
			hwLetOn(c);
		}
		return;
	}
	hwTick(c->worker);
}

void ON(network_filter_config_scheduled)(void *c, void *config, uint64_t event) {}
void ON(network_filter_http_callout_done)(void) {}
void ON(network_filter_above_write_buffer_high_watermark)(void *f, void *c) {}
void ON(network_filter_below_write_buffer_low_watermark)(void *f, void *c) {}

// The listener filter.

// accepted is a connection that has no filter chain yet. Those of a worker's thread are in a list,
// from the oldest to the newest.
typedef struct accepted {
	void *envoy;
	uint32_t worker;
	int64_t at;   // when it was
	bool counted; // and in the list
	struct accepted *before, *behind;
} accepted;

static __thread accepted *oldest, *newest;

static void join(accepted *a) {
	a->counted = true, a->before = newest, a->behind = NULL;
	*(newest == NULL ? &oldest : &newest->behind) = a;
	newest = a;
}

static void leave(accepted *a) {
	a->counted = false;
	*(a->before == NULL ? &oldest : &a->before->behind) = a->behind;
	*(a->behind == NULL ? &newest : &a->behind->before) = a->before;
	hwHasChain();
}

// drop ends one that waits, in another of Envoy's listener filters, for its client to say something.
static void drop(accepted *a) {
	leave(a);
	CB(listener_filter_close_socket)(a->envoy, TEXT("highwater"));
	CB(listener_filter_continue_filter_chain)(a->envoy, false);
}

const void *ON(listener_filter_config_new)(void *c, hw_text name, hw_text config) {
	return (const void *)hwConfigNew(c, 2, (char *)config.ptr, config.length);
}

void ON(listener_filter_config_destroy)(void *config) { hwConfigDestroy((uintptr_t)config); }

// listener_filter_new keeps the configuration until the connection is accepted, in the same call
// of Envoy.
static __thread uintptr_t accepting;

const void *ON(listener_filter_new)(void *config, void *f) {
	accepting = (uintptr_t)config;
	return calloc(1, sizeof(accepted));
}

int ON(listener_filter_on_accept)(void *f, accepted *a) {
	if (a == NULL) {
		return HW_CONTINUE;
	}
	a->envoy = f, a->worker = CB(listener_filter_get_worker_index)(f);
	int what = hwAccept(a->worker, accepting, oldest == NULL ? INT64_MAX : oldest->at, &a->at);
	if (what == HW_REFUSE) {
		CB(listener_filter_close_socket)(f, TEXT("highwater"));
		return HW_STOP;
	}
	if (what == HW_ACCEPT_FOR_OLDEST && oldest != NULL) {
		drop(oldest);
	}
	join(a);
	return HW_CONTINUE;
}

int ON(listener_filter_on_data)(void *f, accepted *a, size_t n) { return HW_CONTINUE; }
void ON(listener_filter_on_close)(void *f, accepted *a) {}
size_t ON(listener_filter_get_max_read_bytes)(void *f, accepted *a) { return 0; }

void ON(listener_filter_destroy)(accepted *a) {
	if (a != NULL && a->counted) {
		leave(a);
	}
	free(a);
}

void ON(listener_filter_scheduled)(void *f, accepted *a, uint64_t event) {}
void ON(listener_filter_config_scheduled)(void *c, void *config, uint64_t event) {}
void ON(listener_filter_http_callout_done)(void) {}

// The bootstrap extension: pages of Envoy's own admin interface, which match their path exactly.

const void *ON(bootstrap_extension_config_new)(void *c, hw_text name, hw_text config) {
	CB(bootstrap_extension_config_signal_init_complete)(c);
	static const hw_text pages[] = {TEXT("/highwater/status"), TEXT("/highwater/peaks"), TEXT("/highwater/pprof")};
	for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
		if (!CB(bootstrap_extension_register_admin_handler)(c, pages[i], TEXT("the memory guard (highwater)"), true, false)) {
			return NULL;
		}
	}
	return c;
}

uint32_t ON(bootstrap_extension_admin_request)(void *c, void *config, hw_text method, hw_text path, hw_text body) {
	return hwAdmin(c, method, path);
}

void ON(bootstrap_extension_config_destroy)(void *config) {}
const void *ON(bootstrap_extension_new)(void *config, void *e) { return e; }
void ON(bootstrap_extension_destroy)(void *x) {}
void ON(bootstrap_extension_shutdown)(void *e, void *x, void (*done)(void *), void *of) { done(of); }
void ON(bootstrap_extension_server_initialized)(void *e, void *x) {}
void ON(bootstrap_extension_worker_thread_initialized)(void *e, void *x) {}
void ON(bootstrap_extension_drain_started)(void *e, void *x) {}
void ON(bootstrap_extension_config_scheduled)(void *c, void *config, uint64_t event) {}
void ON(bootstrap_extension_http_callout_done)(void) {}
void ON(bootstrap_extension_timer_fired)(void *c, void *config, void *timer) {}
void ON(bootstrap_extension_file_changed)(void *c, void *config, hw_text path, uint32_t event) {}
void ON(bootstrap_extension_cluster_add_or_update)(void *c, void *config, hw_text name) {}
void ON(bootstrap_extension_cluster_removal)(void *c, void *config, hw_text name) {}
void ON(bootstrap_extension_listener_add_or_update)(void *c, void *config, hw_text name) {}
void ON(bootstrap_extension_listener_removal)(void *c, void *config, hw_text name) {}
