// Drives the hooks of the module from as many threads as Envoy has workers, with Envoy's side of the
// ABI in its smallest form, so that the race detector and AddressSanitizer see what they can't see
// inside Envoy. Connections and streams begin, read, wait, are answered and end at random, memory
// is short every now and then, and configurations come and go. In the end nothing may be charged.
//
//	drive [seconds [workers]]
#define _GNU_SOURCE
#include "../abi.h"

#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// The hooks that are driven.
extern const char *ON(program_init)(void);
extern const void *ON(http_filter_config_new)(void *, hw_text, hw_text);
extern void ON(http_filter_config_destroy)(const void *);
extern const void *ON(http_filter_new)(const void *, void *);
extern int ON(http_filter_request_headers)(void *, const void *, bool);
extern int ON(http_filter_request_body)(void *, const void *, bool);
extern int ON(http_filter_request_trailers)(void *, const void *);
extern int ON(http_filter_response_headers)(void *, const void *, bool);
extern int ON(http_filter_response_body)(void *, const void *, bool);
extern int ON(http_filter_response_trailers)(void *, const void *);
extern void ON(http_filter_destroy)(const void *);
extern void ON(http_filter_scheduled)(void *, const void *, uint64_t);
extern const void *ON(network_filter_config_new)(void *, hw_text, hw_text);
extern void ON(network_filter_config_destroy)(const void *);
extern const void *ON(network_filter_new)(const void *, void *);
extern int ON(network_filter_new_connection)(void *, const void *);
extern int ON(network_filter_read)(void *, const void *, size_t, bool);
extern int ON(network_filter_write)(void *, const void *, size_t, bool);
extern void ON(network_filter_destroy)(const void *);
extern void ON(network_filter_scheduled)(void *, const void *, uint64_t);
extern const void *ON(listener_filter_config_new)(void *, hw_text, hw_text);
extern void ON(listener_filter_config_destroy)(const void *);
extern const void *ON(listener_filter_new)(const void *, void *);
extern int ON(listener_filter_on_accept)(void *, const void *);
extern void ON(listener_filter_destroy)(const void *);

enum { STREAMS = 8, CONNECTIONS = 24, QUEUE = 1 << 14 };

// A listener's filters: they end when nobody has them any more, on whatever thread that is.
typedef struct {
	atomic_int users;
	const void *http, *network, *listener;
} listener;

typedef struct connection connection;

// filter is what the module is handed as its filter in Envoy. They are used again, and an event for
// one that has ended meanwhile is dropped.
typedef struct {
	atomic_uint_fast64_t lives; // odd while it does
	uint32_t worker;
	bool stream;
	void *of;
} filter;

typedef struct {
	filter f;
	const void *own; // the module's part
	connection *on;
	char length[24];
	uint64_t limit;
	size_t chunk, upload, download;
	bool waits, answered, response, ended;
} stream;

struct connection {
	filter f;
	const void *own;
	listener *from;
	uint64_t id;
	uint32_t limit;
	int disabled;
	bool closed, closing;
	stream streams[STREAMS];
};

typedef struct {
	filter *f;
	uint64_t life;
} event;

typedef struct {
	uint32_t index;
	unsigned seed;
	connection connections[CONNECTIONS];
	struct {
		pthread_mutex_t lock;
		event all[QUEUE];
		size_t n;
	} queue;
} worker;

static worker *workers;
static uint32_t concurrency = 4;
static atomic_bool ends;
static atomic_uint_fast64_t in_use = 40 << 20, served, waited, rejected, reset, closed, ids;
static pthread_mutex_t listening = PTHREAD_MUTEX_INITIALIZER;
static listener *current;
static atomic_uint_fast64_t gauges[256];
static char names[256][64];
static atomic_int metrics;

static unsigned chance(worker *w, unsigned n) { return (unsigned)rand_r(&w->seed) % n; }
static worker *worker_of(filter *f) { return &workers[f->worker]; }

static void give_back(listener *l) {
	if (atomic_fetch_sub(&l->users, 1) == 1) {
		ON(http_filter_config_destroy)(l->http);
		ON(network_filter_config_destroy)(l->network);
		ON(listener_filter_config_destroy)(l->listener);
		free(l);
	}
}

static listener *take(void) {
	pthread_mutex_lock(&listening);
	listener *l = current;
	atomic_fetch_add(&l->users, 1);
	pthread_mutex_unlock(&listening);
	return l;
}

static void end_stream(stream *s) {
	if (atomic_load(&s->f.lives) % 2 == 1) {
		atomic_fetch_add(&s->f.lives, 1);
		ON(http_filter_destroy)(s->own);
	}
}

// The process.
void CB(log)(int level, hw_text text) {
	if (level >= HW_LOG_ERROR || memmem(text.ptr, text.length, "a fault", 7) != NULL) {
		fprintf(stderr, "%.*s\n", (int)text.length, text.ptr);
		if (level >= HW_LOG_CRITICAL) {
			_exit(3);
		}
	}
}
uint32_t CB(get_concurrency)(void) { return concurrency; }
bool CB(is_validation_mode)(void) { return false; }
struct mallinfo mallinfo(void) {
	int n = (int)atomic_load(&in_use);
	return (struct mallinfo){.arena = n, .uordblks = n};
}

// Streams.
static bool is(hw_text t, const char *s) { return t.length == strlen(s) && memcmp(t.ptr, s, t.length) == 0; }

bool CB(http_get_header)(void *f, int type, hw_text key, hw_text *value, size_t index, size_t *n) {
	stream *s = ((filter *)f)->of;
	const char *text = is(key, ":method") ? "POST" : is(key, ":path") ? "/upload" : is(key, "content-length") && *s->length ? s->length : NULL;
	*value = (hw_text){text, text == NULL ? 0 : strlen(text)};
	return text != NULL;
}
bool CB(http_filter_get_attribute_string)(void *f, int id, hw_text *value) {
	static const char *texts[] = {[HW_REQUEST_PROTOCOL] = "HTTP/1.1", [HW_SOURCE_ADDRESS] = "127.0.0.1:7", [HW_CLUSTER_NAME] = "c", [HW_ROUTE_NAME] = "r", [HW_VIRTUAL_HOST_NAME] = "v"};
	const char *text = (size_t)id < sizeof texts / sizeof *texts ? texts[id] : NULL;
	*value = (hw_text){text, text == NULL ? 0 : strlen(text)};
	return text != NULL;
}
bool CB(http_filter_get_attribute_int)(void *f, int id, uint64_t *value) {
	stream *s = ((filter *)f)->of;
	*value = id == HW_CONNECTION_ID ? s->on->id : 500;
	return true;
}
size_t CB(http_get_body_size)(void *f, int type) { return ((stream *)((filter *)f)->of)->chunk; }
uint32_t CB(http_filter_get_worker_index)(void *f) { return ((filter *)f)->worker; }
bool CB(http_set_filter_state_bytes)(void *f, hw_text key, hw_text value) { return true; }
uint64_t CB(http_get_buffer_limit)(void *f) { return ((stream *)((filter *)f)->of)->limit; }
void CB(http_set_buffer_limit)(void *f, uint64_t n) { ((stream *)((filter *)f)->of)->limit = n; }

// An answer of a filter passes that filter too, before the call returns.
void CB(http_send_response)(void *f, uint32_t status, hw_header *h, size_t n, hw_text body, hw_text details) {
	stream *s = ((filter *)f)->of;
	s->answered = true, s->waits = false, s->chunk = body.length, atomic_fetch_add(&rejected, 1);
	ON(http_filter_response_headers)(f, s->own, body.length == 0);
	if (body.length > 0) {
		ON(http_filter_response_body)(f, s->own, true);
	}
}
void CB(http_send_response_headers)(void *f, hw_header *h, size_t n, bool end) { CB(http_send_response)(f, 200, h, n, (hw_text){0}, (hw_text){0}); }
void CB(http_filter_reset_stream)(void *f, int reason, hw_text details) {
	atomic_fetch_add(&reset, 1);
	end_stream(((filter *)f)->of);
}
void CB(http_filter_continue_decoding)(void *f) { ((stream *)((filter *)f)->of)->waits = false; }

void CB(http_filter_continue_encoding)(void *f) {}

// Schedulers, of both kinds of filter.
static void *scheduler_new(filter *f) {
	event *e = malloc(sizeof *e);
	*e = (event){f, atomic_load(&f->lives)};
	return e;
}
static void commit(event *e) {
	worker *w = worker_of(e->f);
	pthread_mutex_lock(&w->queue.lock);
	if (w->queue.n < QUEUE) {
		w->queue.all[w->queue.n++] = *e;
	}
	pthread_mutex_unlock(&w->queue.lock);
}
void *CB(http_filter_scheduler_new)(void *f) { return scheduler_new(f); }
void CB(http_filter_scheduler_commit)(void *s, uint64_t e) { commit(s); }
void CB(http_filter_scheduler_delete)(void *s) { free(s); }
void *CB(network_filter_scheduler_new)(void *f) { return scheduler_new(f); }
void CB(network_filter_scheduler_commit)(void *s, uint64_t e) { commit(s); }
void CB(network_filter_scheduler_delete)(void *s) { free(s); }
void *CB(http_filter_config_scheduler_new)(void *c) { return malloc(1); }
void CB(http_filter_config_scheduler_commit)(void *s, uint64_t e) {}
void CB(http_filter_config_scheduler_delete)(void *s) { free(s); }
int CB(http_filter_config_http_callout)(void *c, uint64_t *id, hw_text cluster, hw_header *h, size_t n, hw_text body, uint64_t ms) { return 1; }

// Metrics: gauges are kept by name.
static int define(hw_text name, size_t *id) {
	for (int i = 0; i < atomic_load(&metrics); i++) {
		if (is(name, names[i])) {
			return *id = (size_t)i, 0;
		}
	}
	int i = atomic_fetch_add(&metrics, 1);
	snprintf(names[i], sizeof names[i], "%.*s", (int)name.length, name.ptr);
	return *id = (size_t)i, 0;
}
int CB(http_filter_config_define_counter)(void *c, hw_text name, hw_text *labels, size_t n, size_t *id) { return define(name, id); }
int CB(http_filter_config_define_gauge)(void *c, hw_text name, hw_text *labels, size_t n, size_t *id) { return define(name, id); }
int CB(http_filter_config_define_histogram)(void *c, hw_text name, hw_text *labels, size_t n, size_t *id) { return define(name, id); }
int CB(http_filter_config_increment_counter)(void *c, size_t id, hw_text *labels, size_t n, uint64_t by) { return atomic_fetch_add(&gauges[id], by), 0; }
int CB(http_filter_config_set_gauge)(void *c, size_t id, hw_text *labels, size_t n, uint64_t v) { return atomic_store(&gauges[id], v), 0; }
int CB(http_filter_config_record_histogram_value)(void *c, size_t id, hw_text *labels, size_t n, uint64_t v) { return 0; }
int CB(network_filter_config_define_counter)(void *c, hw_text name, size_t *id) { return define(name, id); }
int CB(network_filter_config_define_gauge)(void *c, hw_text name, size_t *id) { return define(name, id); }
int CB(network_filter_config_define_histogram)(void *c, hw_text name, size_t *id) { return define(name, id); }
int CB(network_filter_config_increment_counter)(void *c, size_t id, uint64_t by) { return atomic_fetch_add(&gauges[id], by), 0; }
int CB(network_filter_config_set_gauge)(void *c, size_t id, uint64_t v) { return atomic_store(&gauges[id], v), 0; }
int CB(network_filter_config_record_histogram_value)(void *c, size_t id, uint64_t v) { return 0; }

// Connections.
uint64_t CB(network_filter_get_connection_id)(void *f) { return ((connection *)((filter *)f)->of)->id; }
uint32_t CB(network_filter_get_worker_index)(void *f) { return ((filter *)f)->worker; }
int CB(network_filter_get_connection_state)(void *f) { return ((connection *)((filter *)f)->of)->closed ? 2 : HW_CONNECTION_OPEN; }
bool CB(network_filter_is_ssl)(void *f) { return false; }
bool CB(network_filter_get_remote_address)(void *f, hw_text *address, uint32_t *port) { return *address = (hw_text){"127.0.0.1", 9}, *port = 7, true; }
bool CB(network_filter_get_local_address)(void *f, hw_text *address, uint32_t *port) { return *address = (hw_text){"127.0.0.1", 9}, *port = 80, true; }
bool CB(network_filter_get_attribute_string)(void *f, int id, hw_text *value) { return *value = (hw_text){"HTTP/1.1", 8}, true; }
size_t CB(network_filter_get_read_buffer_chunks_size)(void *f) { return 1; }
bool CB(network_filter_get_read_buffer_chunks)(void *f, hw_text *chunks) { return *chunks = (hw_text){"POST / HTTP/1.1\r\n", 17}, true; }
size_t CB(network_filter_get_write_buffer_chunks_size)(void *f) { return 0; }
bool CB(network_filter_get_write_buffer_chunks)(void *f, hw_text *chunks) { return false; }
bool CB(network_filter_drain_read_buffer)(void *f, size_t n) { return true; }
bool CB(network_filter_drain_write_buffer)(void *f, size_t n) { return true; }
uint32_t CB(network_filter_get_buffer_limit)(void *f) { return ((connection *)((filter *)f)->of)->limit; }
void CB(network_filter_set_buffer_limits)(void *f, uint32_t n) { ((connection *)((filter *)f)->of)->limit = n; }
int CB(network_filter_read_disable)(void *f, bool disable) { return ((connection *)((filter *)f)->of)->disabled += disable ? 1 : -1, 0; }
// Streams of a connection that is closed end at once, its own filter a little later.
void CB(network_filter_close)(void *f, int how) {
	connection *c = ((filter *)f)->of;
	c->closed = true, atomic_fetch_add(&closed, 1);
	for (stream *s = c->streams; s < c->streams + STREAMS; s++) {
		end_stream(s);
	}
}

uint32_t CB(listener_filter_get_worker_index)(void *f) { return ((filter *)f)->worker; }
void CB(listener_filter_close_socket)(void *f, hw_text details) {}
void CB(listener_filter_continue_filter_chain)(void *f, bool success) {}
void CB(bootstrap_extension_config_signal_init_complete)(void *c) {}
bool CB(bootstrap_extension_register_admin_handler)(void *c, hw_text prefix, hw_text help, bool removable, bool mutates) { return true; }
void CB(bootstrap_extension_admin_set_response)(void *c, hw_text body) {}

// What workers do.

static void begin_connection(worker *w, connection *c) {
	c->from = take();
	c->id = atomic_fetch_add(&ids, 1) + 1, c->limit = 1 << 20, c->disabled = 0, c->closed = false;
	c->f.worker = w->index, c->f.of = c;
	const void *l = ON(listener_filter_new)(c->from->listener, &c->f);
	int accepted = ON(listener_filter_on_accept)(&c->f, l);
	if (accepted != HW_CONTINUE) {
		ON(listener_filter_destroy)(l);
		give_back(c->from);
		return;
	}
	atomic_fetch_add(&c->f.lives, 1);
	c->own = ON(network_filter_new)(c->from->network, &c->f);
	ON(listener_filter_destroy)(l);
	ON(network_filter_new_connection)(&c->f, c->own);
}

static void end_connection(connection *c) {
	c->closed = true;
	for (stream *s = c->streams; s < c->streams + STREAMS; s++) {
		end_stream(s);
	}
	atomic_fetch_add(&c->f.lives, 1);
	ON(network_filter_destroy)(c->own);
	give_back(c->from);
}

static void begin_stream(worker *w, connection *c, stream *s) {
	*s->length = 0;
	s->upload = chance(w, 3) == 0 ? 0 : chance(w, 4 << 20);
	if (s->upload > 0 && chance(w, 2) == 0) {
		snprintf(s->length, sizeof s->length, "%zu", s->upload);
	}
	s->download = chance(w, 1 << 20), s->limit = c->limit;
	s->on = c, s->waits = s->answered = s->response = s->ended = false, s->f.worker = w->index, s->f.stream = true, s->f.of = s;
	atomic_fetch_add(&s->f.lives, 1);
	s->own = ON(http_filter_new)(c->from->http, &s->f);
	ON(network_filter_read)(&c->f, c->own, 500, false);
	if (c->closed) {
		return;
	}
	s->waits = true; // unless what it comes to says otherwise
	int status = ON(http_filter_request_headers)(&s->f, s->own, s->upload == 0);
	if (status == HW_CONTINUE) {
		s->waits = false;
	} else if (s->waits) {
		atomic_fetch_add(&waited, 1);
	}
	s->ended = s->upload == 0;
}

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

// move has a stream go on by one step.
static void move(worker *w, connection *c, stream *s) {
	if (s->waits) {
		return;
	}
	if (s->answered) {
		end_stream(s);
		return;
	}
	if (!s->ended) {
		s->chunk = least(s->upload, 64 << 10), s->upload -= s->chunk;
		ON(network_filter_read)(&c->f, c->own, s->chunk, false);
		if (c->closed || atomic_load(&s->f.lives) % 2 == 0) {
			return;
		}
		bool trailers = chance(w, 8) == 0;
		s->ended = s->upload == 0;
		ON(http_filter_request_body)(&s->f, s->own, s->ended && !trailers);
		if (s->ended && trailers && atomic_load(&s->f.lives) % 2 == 1 && !s->answered) {
			ON(http_filter_request_trailers)(&s->f, s->own);
		}
		return;
	}
	if (!s->response) {
		s->response = true;
		snprintf(s->length, sizeof s->length, "%zu", s->download);
		ON(http_filter_response_headers)(&s->f, s->own, false);
		return;
	}
	s->chunk = least(s->download, 64 << 10), s->download -= s->chunk;
	bool last = s->download == 0;
	ON(http_filter_response_body)(&s->f, s->own, last);
	ON(network_filter_write)(&c->f, c->own, s->chunk, false);
	if (last) {
		atomic_fetch_add(&served, 1);
		end_stream(s);
	}
}

static void handle(worker *w) {
	static __thread event all[QUEUE];
	pthread_mutex_lock(&w->queue.lock);
	size_t n = w->queue.n;
	memcpy(all, w->queue.all, n * sizeof *all);
	w->queue.n = 0;
	pthread_mutex_unlock(&w->queue.lock);
	for (size_t i = 0; i < n; i++) {
		filter *f = all[i].f;
		if (atomic_load(&f->lives) != all[i].life) {
			continue;
		}
		if (f->stream) {
			ON(http_filter_scheduled)(f, ((stream *)f->of)->own, 0);
		} else {
			ON(network_filter_scheduled)(f, ((connection *)f->of)->own, 0);
		}
	}
}

static void *work(void *of) {
	worker *w = of;
	while (!atomic_load(&ends)) {
		handle(w);
		connection *c = &w->connections[chance(w, CONNECTIONS)];
		if (atomic_load(&c->f.lives) % 2 == 0) {
			begin_connection(w, c);
		} else if (c->closed || chance(w, 400) == 0) {
			end_connection(c);
		} else {
			stream *s = &c->streams[chance(w, STREAMS)];
			if (atomic_load(&s->f.lives) % 2 == 0) {
				begin_stream(w, c, s);
			} else if (chance(w, 100) == 0) {
				end_stream(s); // its client has gone
			} else {
				move(w, c, s);
			}
		}
		if (chance(w, 64) == 0) {
			usleep(200);
		}
	}
	for (connection *c = w->connections; c < w->connections + CONNECTIONS; c++) {
		if (atomic_load(&c->f.lives) % 2 == 1) {
			end_connection(c);
		}
	}
	return NULL;
}

static void listen_again(int i) {
	char text[128];
	snprintf(text, sizeof text, "{\"budget\": {\"limit\": \"%dMiB\"}, \"throttle\": {\"timeout\": \"200ms\"}}", 200 - i % 2 * 10);
	hw_text name = {"highwater", 9}, config = {text, strlen(text)};
	listener *l = calloc(1, sizeof *l);
	l->users = 1;
	l->http = ON(http_filter_config_new)(l, name, config);
	l->network = ON(network_filter_config_new)(l, name, config);
	l->listener = ON(listener_filter_config_new)(l, name, config);
	if (l->http == NULL || l->network == NULL || l->listener == NULL) {
		fprintf(stderr, "the configuration is refused\n");
		exit(1);
	}
	pthread_mutex_lock(&listening);
	listener *before = current;
	current = l;
	pthread_mutex_unlock(&listening);
	if (before != NULL) {
		give_back(before);
	}
}

static uint64_t gauge(const char *name) {
	for (int i = 0; i < atomic_load(&metrics); i++) {
		if (strcmp(names[i], name) == 0) {
			return atomic_load(&gauges[i]);
		}
	}
	fprintf(stderr, "no gauge %s\n", name);
	exit(1);
}

// left is what is still charged, by name; NULL = nothing is.
static const char *left(void) {
	static const char *of[] = {"highwater_fresh_bytes", "highwater_coming_bytes", "highwater_waiting", "highwater_streams", "highwater_connections", "highwater_exposure_bytes"};
	for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
		if (gauge(of[i]) != 0) {
			return of[i];
		}
	}
	return NULL;
}

int main(int argc, char **argv) {
	int seconds = argc > 1 ? atoi(argv[1]) : 3;
	concurrency = argc > 2 ? (uint32_t)atoi(argv[2]) : concurrency;
	workers = calloc(concurrency, sizeof *workers);
	ON(program_init)();
	listen_again(0);
	pthread_t *threads = calloc(concurrency, sizeof *threads);
	for (uint32_t i = 0; i < concurrency; i++) {
		workers[i].index = i, workers[i].seed = i + 1;
		pthread_mutex_init(&workers[i].queue.lock, NULL);
		pthread_create(&threads[i], NULL, work, &workers[i]);
	}
	static const uint64_t readings[] = {40, 172, 40, 230};
	for (int i = 0; i < seconds * 10; i++) {
		atomic_store(&in_use, readings[i / 2 % 4] << 20);
		if (i % 3 == 2) {
			listen_again(i);
		}
		usleep(100000);
	}
	atomic_store(&in_use, 40 << 20);
	atomic_store(&ends, true);
	for (uint32_t i = 0; i < concurrency; i++) {
		pthread_join(threads[i], NULL);
	}
	const char *charged = left();
	for (int i = 0; charged != NULL && i < 200; i++, charged = left()) {
		usleep(50000);
	}
	printf("%llu served, %llu waited, %llu rejected, %llu reset, %llu connections closed, %llu faults\n", (unsigned long long)served, (unsigned long long)waited,
	       (unsigned long long)rejected, (unsigned long long)reset, (unsigned long long)closed, (unsigned long long)gauge("highwater_host_errors_total"));
	if (charged != NULL) {
		fprintf(stderr, "still charged: %s is %llu\n", charged, (unsigned long long)gauge(charged));
		return 1;
	}
	if (served == 0 || waited == 0 || rejected == 0 || closed == 0) {
		fprintf(stderr, "not all was driven\n");
		return 1;
	}
	fflush(stdout);
	_exit(0); // Go's threads are still there
}
