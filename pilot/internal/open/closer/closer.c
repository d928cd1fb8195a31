// The part of Bulwark that runs inside of stock Envoy (proxy-wasm ABI 0.2.1, https://github.com/proxy-wasm/spec): it knows the connections
// that are open in a filter chain, and when it is given other rules it closes those that they forbid. It sees no byte of a connection and runs
// for a connection's beginning and end, and for some seconds after new rules. What the rules are, and how they are written, is in rules.go.
//
// closer.wasm is made of it by `make closer`.

typedef unsigned int u32;
typedef unsigned char u8;

#define HOST(name) __attribute__((import_module("env"), import_name(#name))) u32 name
#define EXPORT(name) __attribute__((export_name(#name)))

HOST(proxy_set_tick_period_milliseconds)(u32 ms);
HOST(proxy_get_property)(const char *path, u32 size, u8 **value, u32 *length);
HOST(proxy_set_effective_context)(u32 context);
HOST(proxy_close_stream)(u32 type);
HOST(proxy_get_buffer_bytes)(u32 type, u32 start, u32 length, u8 **value, u32 *size);

enum { DOWNSTREAM = 2, PLUGIN_CONFIGURATION = 7 };

// A handshake takes 15 s at most: a connection that was begun before the rules came has said by then who its client is.
enum { FIRST_LOOK_MS = 250, LOOK_MS = 1000, LOOKS = 17 };

// Memory that is kept grows and is never given back; what the host returns for a moment is in a space that is used again and again.
extern u8 __heap_base;
static u32 top;
static u8 space[64 << 10] __attribute__((aligned(16)));
static u32 used;

static u8 *kept(u32 size) {
	if (top == 0)
		top = (u32)&__heap_base;
	u32 at = (top + 15) & ~15u;
	u32 end = at + size;
	u32 have = __builtin_wasm_memory_size(0) << 16;
	if (end < at || (end > have && __builtin_wasm_memory_grow(0, (end - have + 65535) >> 16) == (__SIZE_TYPE__)-1))
		return 0;
	top = end;
	return (u8 *)at;
}

EXPORT(malloc) u8 *allocate(u32 size) {
	if (size > sizeof space)
		return kept(size);
	u32 at = (used + 15) & ~15u;
	if (at + size > sizeof space)
		at = 0; // nothing that was returned before is needed any more
	used = at + size;
	return space + at;
}

EXPORT(proxy_abi_version_0_2_1) void version(void) {}

// The open connections, by their contexts.
static u32 *connections;
static u32 open_, room;

EXPORT(proxy_on_context_create) void created(u32 context, u32 parent) {
	if (parent == 0)
		return;
	if (open_ == room) {
		u32 more = room ? 2 * room : 64;
		u32 *other = (u32 *)kept(more * sizeof(u32));
		if (!other)
			return; // it will not be closed
		for (u32 i = 0; i < open_; i++)
			other[i] = connections[i];
		connections = other;
		room = more;
	}
	connections[open_++] = context;
}

EXPORT(proxy_on_delete) void deleted(u32 context) {
	for (u32 i = open_; i-- > 0;)
		if (connections[i] == context) {
			connections[i] = connections[--open_];
			return;
		}
}

EXPORT(proxy_on_new_connection) u32 began(u32 context) { return 0; }
EXPORT(proxy_on_done) u32 done(u32 context) { return 1; }
EXPORT(proxy_on_vm_start) u32 started(u32 context, u32 size) { return 1; }

// The rules, and who has to look: the last to have been configured.
static u8 *rules;
static u32 length, capacity, root, looks;

EXPORT(proxy_on_configure) u32 configured(u32 context, u32 size) {
	u8 *text = 0;
	u32 got = 0;
	length = 0;
	if (size > capacity) {
		u8 *larger = kept(2 * size);
		if (!larger)
			return 0;
		rules = larger;
		capacity = 2 * size;
	}
	if (size > 0) {
		if (proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, &text, &got) || got != size)
			return 0;
		for (u32 i = 0; i < size; i++)
			rules[i] = text[i];
		if (size > sizeof space)
			top = (u32)text; // it was the last that was kept
	}
	length = size;
	root = context;
	looks = 0;
	proxy_set_tick_period_milliseconds(FIRST_LOOK_MS);
	return 1;
}

// What is known of a connection.
static u8 *peer;
static u32 peer_length, port;

// An expression is evaluated to no, maybe or yes.
enum { NO, MAYBE, YES };
static u8 *at, *end;

static u32 number(void) {
	if (end - at < 2) {
		at = end;
		return 0;
	}
	u32 n = at[0] | at[1] << 8;
	at += 2;
	return n;
}

// matches compares with a pattern in which * stands for any characters but a slash, and + for one or more of them.
static u32 matches(u8 *pattern, u8 *pattern_end, u8 *text, u8 *text_end) {
	for (; pattern < pattern_end; pattern++, text++) {
		if (*pattern == '*' || *pattern == '+') {
			if (*pattern == '+' && (text == text_end || *text++ == '/'))
				return 0;
			for (;; text++) {
				if (matches(pattern + 1, pattern_end, text, text_end))
					return 1;
				if (text == text_end || *text == '/')
					return 0;
			}
		}
		if (text == text_end || *text != *pattern)
			return 0;
	}
	return text == text_end;
}

static u32 value(u32 depth) {
	u32 n, out, v;
	if (at >= end || depth > 16) {
		at = end;
		return MAYBE;
	}
	switch (*at++) {
	case 'N':
		return NO;
	case 'Y':
		return YES;
	case '!':
		return YES - value(depth + 1);
	case '&':
		out = YES;
		for (n = number(); n > 0 && at < end; n--)
			if ((v = value(depth + 1)) < out)
				out = v;
		return n ? MAYBE : out;
	case '|':
		out = NO;
		for (n = number(); n > 0 && at < end; n--)
			if ((v = value(depth + 1)) > out)
				out = v;
		return n ? MAYBE : out;
	case 'i':
		return peer_length ? YES : NO;
	case 'd':
		return number() == port ? YES : NO;
	case 'g':
		n = number();
		if (n > (u32)(end - at)) {
			at = end;
			return MAYBE;
		}
		at += n;
		return matches(at - n, at, peer, peer + peer_length) ? YES : NO;
	}
	return MAYBE;
}

#define PROPERTY(path, value, length) proxy_get_property(path, sizeof(path) - 1, value, length)

static u32 begins(u8 *text, u32 size, const char *with) {
	for (; *with; with++, text++, size--)
		if (size == 0 || *text != *with)
			return 0;
	return 1;
}

// forbidden says whether the rules forbid the connection of the present context whatever it carries.
static u32 forbidden(void) {
	u8 *chain = 0, *number_ = 0;
	u32 chain_length = 0, number_length = 0;
	used = 0;
	peer = 0;
	peer_length = 0;
	if (PROPERTY("xds\0filter_chain_name", &chain, &chain_length) || PROPERTY("destination\0port", &number_, &number_length) || number_length != 8)
		return 0;
	port = number_[0] | number_[1] << 8;
	u32 secured = begins(chain, chain_length, "tls-");
	u32 http = begins(chain, chain_length, "tls-http") || begins(chain, chain_length, "plaintext-http");
	if (secured && (PROPERTY("connection\0uri_san_peer_certificate", &peer, &peer_length) || peer_length == 0))
		return 0; // in its handshake
	// The rules for requests come first, after their length.
	at = rules;
	end = rules + length;
	u32 first = number() | number() << 16;
	if (first > (u32)(end - at))
		return 0;
	if (http)
		end = at + first;
	else
		at += first;
	return value(0) == YES;
}

EXPORT(proxy_on_tick) void tick(u32 context) {
	if (context != root || looks >= LOOKS) {
		proxy_set_tick_period_milliseconds(0);
		return;
	}
	if (looks++ == 0)
		proxy_set_tick_period_milliseconds(LOOK_MS);
	for (u32 i = open_; i-- > 0;) {
		if (i >= open_)
			continue;
		proxy_set_effective_context(connections[i]);
		if (length >= 4 && forbidden())
			proxy_close_stream(DOWNSTREAM);
	}
	proxy_set_effective_context(context);
}
