// Expressions, which are evaluated to no, maybe or yes.
enum { NO, MAYBE, YES };
static u8 *at, *end;
static u32 steps;

static u32 number(u32 bytes) {
	u32 n = 0;
	if (bytes > (u32)(end - at)) {
		at = end;
		return 0;
	}
	for (u32 i = 0; i < bytes; i++)
		n |= (u32)at[i] << 8 * i;
	at += bytes;
	return n;
}

typedef struct {
	u8 *at;
	u32 size;
} text;

static u32 folded(u32 c, u32 fold) { return fold && c >= 'A' && c <= 'Z' ? c | 32 : c; }

// same compares a text, maybe in lower case, with another.
static u32 same(const u8 *a, const u8 *b, u32 size, u32 fold) {
	steps += 1 + size / 8;
	for (u32 i = 0; i < size; i++)
		if (folded(a[i], fold) != b[i])
			return 0;
	return 1;
}

// What is known of what is judged.
static struct entry *stream; // 0: it is a connection
static u32 http, port;
static text peer, names[3], addresses[3]; // names: server name, serial number; addresses: source, remote, destination
static text metadata;                     // in a block of its own, as it may be long
static u8 asked[6];

#define PROPERTY(path, value) proxy_get_property(path, sizeof(path) - 1, &(value).at, &(value).size)

static u32 begins(text t, const char *with) {
	for (; *with; with++, t.at++, t.size--)
		if (t.size == 0 || *t.at != *with)
			return 0;
	return 1;
}

// known asks the host for what rules are always asked about; it is false if that is not known yet.
static u32 known(void) {
	text chain = {0}, number_ = {0};
	peer = (text){0};
	if (metadata.size)
		given(metadata.at, metadata.size);
	metadata = (text){0};
	for (u32 i = 0; i < sizeof asked; i++)
		asked[i] = 0;
	if (PROPERTY("destination\0port", number_) || number_.size != 8)
		return 0;
	port = number_.at[0] | number_.at[1] << 8;
	http = 1;
	if (stream) {
		PROPERTY("connection\0uri_san_peer_certificate", peer);
		return 1;
	}
	if (PROPERTY("xds\0filter_chain_name", chain))
		return 0;
	http = begins(chain, "tls-http") || begins(chain, "plaintext-http");
	// Of a client in its handshake nobody knows yet who it is.
	return !begins(chain, "tls-") || (!PROPERTY("connection\0uri_san_peer_certificate", peer) && peer.size > 0);
}

// of is a text that the host knows, asked for once.
#define OF(i, path, into) (asked[i] ? asked[i] == 1 : ((asked[i] = PROPERTY(path, into) ? 2 : 1) == 1))

// line is the next line of a header from the i-th on, of a stream whose head is known.
static u32 line(u8 *name, u32 size, u32 *i, text *out) {
	u8 *h = stream->head;
	u32 *sizes = (u32 *)h, n = sizes[0];
	u8 *p = h + 4 + 8 * n, *after = h + stream->size;
	for (u32 j = 0; j < n; j++) {
		u32 k = sizes[1 + 2 * j], v = sizes[2 + 2 * j];
		if (p + k + v + 2 > after)
			return 0;
		if (j >= *i && k == size && same(p, name, k, 0)) {
			*i = j + 1;
			*out = (text){p + k + 1, v};
			return 1;
		}
		p += k + v + 2;
	}
	return 0;
}

#include "expression.h"

// compared says whether a text, maybe in lower case, is one that the rules have here, from kind on.
static u32 compared(text t, u32 fold, u8 kind, u8 *with, u32 size) {
	switch (kind) {
	case '+':
		return t.size > 0;
	case '=':
		return t.size == size && same(t.at, with, size, fold);
	case '^':
		return t.size >= size && same(t.at, with, size, fold);
	case '$':
		return t.size >= size && same(t.at + t.size - size, with, size, fold);
	}
	return expressed(t, fold, with, size);
}

#include "claim.h"

static u32 textual(void) {
	u8 what = number(1), *name = 0;
	u32 name_size = 0, i = 0, found = 0;
	text t = {0};
	if (what == 'x' || what == 'c' || what == 'i') {
		name_size = number(2);
		if (name_size > (u32)(end - at))
			return MAYBE;
		name = at;
		at += name_size;
	}
	u8 kind = number(1), *with;
	u32 size = number(4);
	if (size > (u32)(end - at)) {
		at = end;
		return MAYBE;
	}
	with = at;
	at += size;
	switch (what) {
	case 'p':
		return peer.size && compared(peer, 0, kind, with, size) ? YES : NO;
	case 'z':
		if (!OF(3, "filter_state\0bulwark.peer_serial", names[1]))
			return peer.size ? MAYBE : NO;
		return compared(names[1], 1, kind, with, size) ? YES : NO;
	case 'n':
		if (!OF(4, "connection\0requested_server_name", names[0]))
			names[0].size = 0;
		return compared(names[0], 1, kind, with, size) ? YES : NO;
	case 'c':
	case 'i':
		return claimed(name, name_size, what == 'c', kind, with, size);
	}
	if (!stream || !stream->head)
		return MAYBE;
	switch (what) {
	case 'm':
		line((u8 *)":method", 7, &i, &t);
		break;
	case 'h':
		line((u8 *)":authority", 10, &i, &t);
		break;
	case 'u':
		line((u8 *)":path", 5, &i, &t);
		for (u32 j = 0; j < t.size; j++)
			if (t.at[j] == '?')
				t.size = j;
		break;
	case 'x':
		while (!found && line(name, name_size, &i, &t))
			found = compared(t, 0, kind, with, size);
		return found ? YES : NO;
	default:
		return MAYBE;
	}
	return compared(t, what == 'h', kind, with, size) ? YES : NO;
}

// address reads an address as the host writes it, with or without a port, and returns its length in bytes; 0 if it is none. One of IPv4 in one of IPv6 is that of IPv4.
static u32 address(text t, u8 out[16]) {
	u8 groups[16], *p = t.at, *stop = t.at + t.size;
	u32 n = 0, gap = 99, v = 0, digits = 0, dots = 0;
	if (p < stop && *p == '[') {
		p++;
		for (stop = p; stop < t.at + t.size && *stop != ']'; stop++)
			;
	} else { // a colon ends an address of IPv4
		u32 colons = 0;
		u8 *colon = stop;
		for (u8 *q = p; q < stop; q++)
			if (*q == ':' && colons++ == 0)
				colon = q;
		if (colons == 1)
			stop = colon;
	}
	for (u32 i = 0; i < 16; i++)
		out[i] = 0;
	u32 six = 0;
	for (u8 *q = p; q < stop; q++)
		six |= *q == ':';
	for (; p <= stop; p++) {
		u8 c = p < stop ? *p : 0;
		if (c >= '0' && c <= '9') {
			v = v * (six && !dots ? 16 : 10) + c - '0';
			digits++;
		} else if (six && ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))) {
			v = v * 16 + (c | 32) - 'a' + 10;
			digits++;
		} else if (c == '.' || (c == 0 && (dots || !six))) {
			if (six && !dots) { // the first number of the last part was read as hexadecimal
				u32 tens = (v >> 8) * 100 + (v >> 4 & 15) * 10 + (v & 15);
				v = tens;
			}
			dots++;
			if (!digits || v > 255 || n >= 16)
				return 0;
			groups[n++] = v;
			v = digits = 0;
		} else if (c == ':' || c == 0) {
			if (digits) {
				if (n > 14 || v > 0xffff)
					return 0;
				groups[n++] = v >> 8;
				groups[n++] = v;
			}
			if (c == ':' && p + 1 < stop && p[1] == ':') {
				if (gap != 99)
					return 0;
				gap = n;
				p++;
			}
			v = digits = 0;
		} else if (c == '%') {
			stop = p; // a zone
			p--;
		} else
			return 0;
	}
	if (!six) {
		for (u32 i = 0; i < n; i++)
			out[i] = groups[i];
		return n == 4 ? 4 : 0;
	}
	if (gap == 99 ? n != 16 : n > 14)
		return 0;
	for (u32 i = 0; i < n; i++)
		out[i < gap ? i : 16 - n + i] = groups[i];
	for (u32 i = 0; i < 10; i++)
		if (out[i])
			return 16;
	if (out[10] != 0xff || out[11] != 0xff)
		return 16;
	for (u32 i = 0; i < 4; i++)
		out[i] = out[12 + i];
	return 4;
}

// network says whether an address is in a network.
static u32 network(void) {
	u8 which = number(1), is[16];
	u32 bytes = number(1), bits = number(1);
	u8 *prefix = at;
	text *t = 0;
	if (bytes > 16 || bits > 8 * bytes || bytes > (u32)(end - at)) {
		at = end;
		return MAYBE;
	}
	at += bytes;
	steps += 16;
	switch (which) {
	case 's': // of the TCP peer
		t = OF(0, "filter_state\0bulwark.source", addresses[0]) ? &addresses[0] : 0;
		break;
	case 'r': // of the client that proxies before name: of connections that carry requests, each of these says it
		if (http && !stream)
			return MAYBE;
		t = OF(1, "source\0address", addresses[1]) ? &addresses[1] : 0;
		break;
	case 'd':
		t = OF(2, "destination\0address", addresses[2]) ? &addresses[2] : 0;
		break;
	}
	u32 size = t ? address(*t, is) : 0;
	if (size == 0)
		return MAYBE;
	if (size != bytes)
		return NO;
	for (u32 i = 0; i < bits; i++)
		if (((is[i / 8] ^ prefix[i / 8]) >> (7 - i % 8)) & 1)
			return NO;
	return YES;
}

static u32 value(u32 depth) {
	u32 n, out, v, decides;
	if (at >= end || depth > 16) {
		at = end;
		return MAYBE;
	}
	steps++;
	switch (*at++) {
	case 'N':
		return NO;
	case 'Y':
		return YES;
	case '!':
		return YES - value(depth + 1);
	case '&':
	case '|':
		decides = at[-1] == '&' ? NO : YES;
		out = YES - decides;
		n = number(2);
		u32 size = number(4);
		if (size > (u32)(end - at)) {
			at = end;
			return MAYBE;
		}
		for (u8 *after = at + size; n > 0; n--) {
			if (at >= after)
				return MAYBE;
			v = value(depth + 1);
			if (decides == NO ? v < out : v > out)
				out = v;
			if (out == decides) {
				at = after;
				break;
			}
		}
		return out;
	case 'd':
		return number(2) == port ? YES : NO;
	case 'a':
		return network();
	case 't':
		return textual();
	}
	return MAYBE;
}
