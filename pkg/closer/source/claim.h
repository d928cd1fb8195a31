// Claims of the token that a stream's request had. Envoy keeps them as dynamic metadata of the stream, as long as that is open, so they are asked for when rules
// come, and nothing is done for them before. The host hands metadata over whole, as a message of protobuf (envoy.config.core.v3.Metadata, whose values are
// google.protobuf.Struct): of one value alone it would not tell a number from a text of eight bytes.
static u32 believed; // whether the rules know the token's issuer

enum { MESSAGE = 2 << 3 | 2, NUMBER = 2 << 3 | 1, TEXT = 3 << 3 | 2, BOOLEAN = 4 << 3, STRUCT = 5 << 3 | 2, LIST = 6 << 3 | 2, FIRST = 1 << 3 | 2 };

static u32 varint(text *t) {
	u32 n = 0;
	for (u32 shift = 0; t->size > 0; shift += 7) {
		u8 c = *t->at++;
		t->size--;
		if (shift < 32)
			n |= (u32)(c & 127) << shift;
		if (c < 128)
			break;
	}
	return n;
}

// field takes the first field off a message. It returns its number and type, and what it holds; 0 when there is none, or none that can be read.
static u32 field(text *message, text *holds) {
	u32 tag = message->size ? varint(message) : 0, size = ~0u;
	u8 *from = message->at;
	steps++;
	switch (tag & 7) {
	case 0:
		varint(message);
		*holds = (text){from, message->at - from};
		return tag;
	case 1:
		size = 8;
		break;
	case 2:
		size = varint(message);
	}
	if (size > message->size)
		return 0;
	*holds = (text){message->at, size};
	message->at += size;
	message->size -= size;
	return tag;
}

// typed has a value be what it holds, and returns its type.
static u32 typed(text *value) {
	text holds = {0};
	u32 tag = field(value, &holds);
	*value = holds;
	return tag;
}

// within finds what a map, which is the first field of its message, has under a name.
static u32 within(text *map, const u8 *name, u32 size) {
	text entry, holds, rest = *map;
	for (u32 tag; (tag = field(&rest, &entry));) {
		u32 is = 0;
		if (tag != FIRST)
			continue;
		text value = {0};
		while ((tag = field(&entry, &holds)))
			if (tag == FIRST)
				is = holds.size == size && same(holds.at, name, size, 0);
			else if (tag == MESSAGE)
				value = holds;
		if (is) {
			*map = value;
			return 1;
		}
	}
	return 0;
}

// one says whether a value is what rules have here. True, false and numbers are compared with what is written as such.
static u32 one(u32 type, text t, u32 any, u8 kind, u8 *with, u32 size) {
	if (type == TEXT)
		return kind != '#' && compared(t, 0, kind, with, size);
	if (!any)
		return 0;
	if (type == BOOLEAN && kind == '=') {
		text word = t.size && *t.at ? (text){(u8 *)"true", 4} : (text){(u8 *)"false", 5};
		return compared(word, 0, kind, with, size);
	}
	if (type == NUMBER && kind == '#') {
		double a, b;
		if (size != sizeof b)
			return 0;
		__builtin_memcpy(&a, t.at, sizeof a);
		__builtin_memcpy(&b, with, sizeof b);
		return a == b;
	}
	return kind == '+' && (type == BOOLEAN || type == NUMBER);
}

// claimed says whether a claim, maybe within others, is what rules have here: if any claim will do and not a text alone, one element is enough of a list.
static u32 claimed(u8 *names, u32 length, u32 any, u8 kind, u8 *with, u32 size) {
	static const char filter[] = "envoy.filters.http.jwt_authn", payload[] = "payload";
	text t, element;
	if (!stream)
		return MAYBE;
	u32 before = used;
	used = sizeof space;
	u32 is = OF(5, "metadata", metadata);
	used = before;
	if (!is)
		return MAYBE;
	if (!believed)
		return NO;
	t = metadata;
	if (!within(&t, (u8 *)filter, sizeof filter - 1) || !within(&t, (u8 *)payload, sizeof payload - 1))
		return NO;
	u32 type = typed(&t);
	while (length >= 2) {
		u32 n = n16(names);
		if (n > length - 2)
			return MAYBE;
		if (type != STRUCT || !within(&t, names + 2, n))
			return NO;
		type = typed(&t);
		names += 2 + n;
		length -= 2 + n;
	}
	if (type != LIST || !any)
		return one(type, t, any, kind, with, size) ? YES : NO;
	while (field(&t, &element)) {
		type = typed(&element);
		if (one(type, element, any, kind, with, size))
			return YES;
	}
	return NO;
}
