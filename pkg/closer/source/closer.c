// The part of Bulwark that runs inside of stock Envoy (proxy-wasm ABI 0.2.1, https://github.com/proxy-wasm/spec): it knows the connections and the
// streams of HTTP that are open, and when it is given other rules it ends those that they forbid. It sees no byte of a connection, and of a request its
// head and what its token said alone; it runs for a beginning and an end, and for some seconds after new rules. What the rules are, and how they are written, is in rules.go.
//
// closer.wasm is made of it, and of the files that it includes, by `make closer`.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define HOST(name) __attribute__((import_module("env"), import_name(#name))) u32 name
#define EXPORT(name) __attribute__((export_name(#name)))

HOST(proxy_set_tick_period_milliseconds)(u32 ms);
HOST(proxy_get_property)(const char *path, u32 size, u8 **value, u32 *length);
HOST(proxy_set_effective_context)(u32 context);
HOST(proxy_close_stream)(u32 type);
HOST(proxy_get_buffer_bytes)(u32 type, u32 start, u32 length, u8 **value, u32 *size);
HOST(proxy_get_header_map_pairs)(u32 type, u8 **value, u32 *size);
HOST(proxy_send_local_response)(u32 code, const char *details, u32 details_size, const char *body, u32 body_size, const char *headers, u32 headers_size, u32 grpc);

enum { REQUEST_HEADERS = 0, DOWNSTREAM = 2, PLUGIN_CONFIGURATION = 7 };

// A handshake takes 15 s at most: a connection that was begun before the rules came has said by then who its client is. Rules are asked for so many steps
// (about one for each character that is compared) before all else that the thread has to do has its turn.
enum { FIRST_LOOK_MS = 250, LOOK_MS = 1000, LOOKS = 17, STEPS = 2 << 20, SOON_MS = 1 };

// The host ends what it is told to when it has left the sandbox, tells it of what has ended, and ends the next in the midst of that. So it is told of few at
// a time, and of one stream, as the next may be of the same connection. After so many streams it is the turn of connections that are forbidden whatever they
// carry, which take theirs with them. Else one that carries requests goes on: each request is decided by Envoy's own filters, and one that was on its
// way while its connection ended would have no answer that says why.
enum { STREAMS_AT_ONCE = 1, CONNECTIONS_AT_ONCE = 16, STREAMS_BEFORE = 500 };

// A head that is longer is not kept, nor is one where so much is kept already: what such a request asked for is unknown.
enum { LONGEST_HEAD = 32 << 10, MOST_KEPT = 16 << 20 };

#include "memory.h"

EXPORT(proxy_abi_version_0_2_1) void version(void) {}
EXPORT(proxy_on_vm_start) u32 started(u32 context, u32 size) { return 1; }

// What is open, found by its context: a table whose places are a power of two, of which a quarter at least is empty.
enum kind { NOTHING, CONNECTION, CARRIER, STREAM }; // a carrier is a connection that is known to carry requests
static struct entry {
	u32 context, judged; // by which rules
	u8 *head;            // of a stream, as the host has written it; 0 if it was not kept
	u32 size : 28;
	enum kind kind : 4;
} *table;
static u32 places, open_, heads;

static u32 place(u32 context) { return context * 2654435769u & (places - 1); }

static void put(struct entry e) {
	u32 i = place(e.context);
	while (table[i].kind)
		i = (i + 1) & (places - 1);
	table[i] = e;
}

static struct entry *opened(u32 context, enum kind kind) {
	if (4 * (open_ + 1) > 3 * places) {
		struct entry *old = table;
		u32 had = places, more = had ? 2 * had : 64;
		struct entry *larger = (struct entry *)taken(more * sizeof *table);
		if (!larger)
			return 0; // it will not be closed
		for (u32 i = 0; i < more; i++)
			larger[i].kind = NOTHING;
		table = larger;
		places = more;
		for (u32 i = 0; i < had; i++)
			if (old[i].kind)
				put(old[i]);
		if (had)
			given((u8 *)old, had * sizeof *table);
	}
	open_++;
	put((struct entry){.context = context, .kind = kind});
	u32 i = place(context);
	while (table[i].context != context || !table[i].kind)
		i = (i + 1) & (places - 1);
	return &table[i];
}

EXPORT(proxy_on_new_connection) u32 connected(u32 context) {
	opened(context, CONNECTION);
	return 0;
}

EXPORT(proxy_on_request_headers) u32 requested(u32 context, u32 lines, u32 ends) {
	struct entry *e = opened(context, STREAM);
	u8 *head = 0;
	u32 size = 0;
	used = 0;
	if (!e || proxy_get_header_map_pairs(REQUEST_HEADERS, &head, &size))
		return 0;
	if (size <= LONGEST_HEAD && heads + size <= MOST_KEPT && (e->head = taken(size))) {
		copy(e->head, head, size);
		e->size = size;
		heads += size;
	}
	if (size > sizeof space)
		given(head, size);
	return 0;
}

#include "value.h"

// Rules come with the configuration of filters that hold nothing open, first what they are about: of those about the same, the last that was configured and is still there holds.
// So rules that come back after others hold again, whether they were configured anew or the host has still had them.
static struct rules {
	u32 context, size;
	u8 *text;
} sets[64];
static u32 had, generation, looks, looking;

// How far a look has come: whether it is the turn of streams or of connections, how many streams have been ended before, and whether they were too many.
static enum kind turn;
static u32 before, crowded;

static void change(u32 context) {
	generation++;
	looks = before = crowded = 0;
	turn = STREAM;
	looking = context;
	proxy_set_effective_context(context);
	proxy_set_tick_period_milliseconds(FIRST_LOOK_MS);
}

// dropped are rules whose filter is gone.
static void dropped(u32 context) {
	for (u32 i = 0; i < had; i++) {
		if (sets[i].context != context)
			continue;
		u8 about = sets[i].text[0], last = 1;
		for (u32 j = i + 1; j < had; j++)
			if (sets[j].text[0] == about)
				last = 0;
		given(sets[i].text, sets[i].size);
		for (had--; i < had; i++)
			sets[i] = sets[i + 1];
		if (had > 0 && (last || looking == context))
			change(sets[had - 1].context);
		return;
	}
}

EXPORT(proxy_on_configure) u32 configured(u32 context, u32 size) {
	u8 *text = 0, *own = 0;
	u32 got = 0;
	if (size == 0)
		return 1;
	used = 0;
	if (had == sizeof sets / sizeof *sets)
		dropped(sets[0].context);
	if (proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, &text, &got) || got != size)
		return 0;
	if ((own = taken(size)))
		copy(own, text, size);
	if (size > sizeof space)
		given(text, size);
	if (!own)
		return 0;
	sets[had++] = (struct rules){context, size, own};
	change(context);
	return 1;
}

EXPORT(proxy_on_delete) void deleted(u32 context) {
	if (places == 0) {
		dropped(context);
		return;
	}
	u32 i = place(context);
	while (table[i].kind && table[i].context != context)
		i = (i + 1) & (places - 1);
	if (!table[i].kind) {
		dropped(context);
		return;
	}
	if (table[i].head) {
		heads -= table[i].size;
		given(table[i].head, table[i].size);
	}
	open_--;
	for (u32 j = i;;) { // what follows moves up, so that it is found without what was before it
		table[i].kind = NOTHING;
		do {
			j = (j + 1) & (places - 1);
			if (!table[j].kind)
				return;
		} while (((j - place(table[j].context)) & (places - 1)) < ((j - i) & (places - 1)));
		table[i] = table[j];
		i = j;
	}
}

// forbidden says whether rules forbid what the present context is, whatever it carries yet.
static u32 forbidden(struct rules *r) {
	if (r->size < 5)
		return 0;
	// The rules for requests come first, after their length, and before them whether the issuer of a token is one that is believed.
	at = r->text + 1;
	end = r->text + r->size;
	u32 first = number(4);
	if (first > (u32)(end - at))
		return 0;
	if (http) {
		end = at + first;
		believed = 1;
		believed = value(0) == YES;
	} else
		at += first;
	u32 v = value(0);
	return v == YES || (v == MAYBE && stream && !stream->head);
}

static u32 last(u32 i) {
	for (u32 j = i + 1; j < had; j++)
		if (sets[j].text[0] == sets[i].text[0])
			return 0;
	return 1;
}

// judge ends what is forbidden, and says whether it was.
static u32 judge(struct entry *e) {
	used = 0;
	proxy_set_effective_context(e->context);
	stream = e->kind == STREAM ? e : 0;
	if (!known())
		return 0;
	if (e->kind == CONNECTION && http) {
		e->kind = CARRIER;
		if (!crowded)
			return 0;
	}
	e->judged = generation;
	for (u32 i = 0; i < had; i++) {
		if (!last(i) || !forbidden(&sets[i]))
			continue;
		// A request without an answer yet is denied; of one that has begun to be answered the stream is reset.
		static const char details[] = "policy_changed", body[] = "RBAC: access denied";
		if (stream)
			proxy_send_local_response(403, details, sizeof details - 1, body, sizeof body - 1, 0, 0, ~0u);
		else
			proxy_close_stream(DOWNSTREAM);
		return 1;
	}
	return 0;
}

// look judges all whose turn it is and that has not been judged, and says whether it has come to the end.
static u32 look(u32 most) {
	for (u32 i = 0; i < places; i++) {
		if (table[i].judged == generation || (table[i].kind != turn && (table[i].kind != CARRIER || !crowded || turn == STREAM)))
			continue;
		if (most == 0 || steps > STEPS)
			return 0;
		most -= judge(&table[i]);
	}
	return 1;
}

EXPORT(proxy_on_tick) void tick(u32 context) {
	u32 period = SOON_MS;
	if (context != looking || looks >= LOOKS) {
		proxy_set_tick_period_milliseconds(0);
		return;
	}
	steps = 0;
	// A request is told that it is denied before its connection ends.
	if (turn == STREAM) {
		u32 all = look(STREAMS_AT_ONCE);
		crowded = !all && ++before >= STREAMS_BEFORE;
		if (all || crowded)
			turn = CONNECTION;
	} else if (look(CONNECTIONS_AT_ONCE)) {
		turn = STREAM;
		before = 0;
		if (!crowded) {
			looks++;
			period = LOOK_MS;
		}
	}
	proxy_set_effective_context(context);
	proxy_set_tick_period_milliseconds(period);
}
