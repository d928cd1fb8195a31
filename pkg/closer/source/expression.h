// Regular expressions, as programs that Go's compiler makes of them (expression.go): all of a program's threads go through the text at once, so that it takes
// as many steps as text and program are long, whoever wrote either.
enum { MOST_INSTRUCTIONS = 4096 };
enum { MATCH, ALTERNATIVE, NOTHING_HERE, RANGES, BEGIN, END };

static u16 threads[2][MOST_INSTRUCTIONS], waiting[MOST_INSTRUCTIONS], count[2];
static u32 marks[MOST_INSTRUCTIONS], mark;

static u32 n16(const u8 *p) { return p[0] | p[1] << 8; }
static u32 n32(const u8 *p) { return n16(p) | n16(p + 2) << 16; }

// An instruction has eight bytes: what it does, nothing, what is next, what else may be or where ranges begin, and how many of these there are.
struct program {
	const u8 *code, *ranges;
	u32 length, start, of_ranges;
};

// add is an instruction that goes on at a place, and all that follow it without a character.
static u32 add(struct program *p, u32 list, u32 pc, u32 begins_, u32 ends) {
	u32 n = 0, matched = 0;
	if (pc < p->length && marks[pc] != mark) {
		marks[pc] = mark;
		waiting[n++] = pc;
	}
	while (n > 0) {
		pc = waiting[--n];
		steps++;
		const u8 *i = p->code + 8 * pc;
		u32 next[2], many = 0;
		switch (i[0]) {
		case MATCH:
			matched = 1;
			break;
		case RANGES:
			threads[list][count[list]++] = pc;
			break;
		case ALTERNATIVE:
			next[many++] = n16(i + 4);
			next[many++] = n16(i + 2);
			break;
		case NOTHING_HERE:
			next[many++] = n16(i + 2);
			break;
		case BEGIN:
			if (begins_)
				next[many++] = n16(i + 2);
			break;
		case END:
			if (ends)
				next[many++] = n16(i + 2);
			break;
		}
		while (many > 0) {
			u32 to = next[--many];
			if (to < p->length && marks[to] != mark) { // each is waited for once
				marks[to] = mark;
				waiting[n++] = to;
			}
		}
	}
	return matched;
}

// rune decodes the next character of UTF-8; bytes that are none are the replacement character, each by itself, as in Go.
static u32 rune(const u8 *p, u32 left, u32 *width) {
	u32 c = p[0], need = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : (c & 0xf0) == 0xe0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : 9;
	*width = 1;
	if (need == 0)
		return c;
	if (need == 9 || need >= left)
		return 0xfffd;
	u32 v = c & (0x3f >> need);
	for (u32 i = 1; i <= need; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0xfffd;
		v = v << 6 | (p[i] & 0x3f);
	}
	if ((need == 2 && (v < 0x800 || (v >= 0xd800 && v < 0xe000))) || (need == 3 && (v < 0x10000 || v > 0x10ffff)))
		return 0xfffd;
	*width = need + 1;
	return v;
}

// expressed says whether the whole of a text, maybe in lower case, is one of an expression.
static u32 expressed(text t, u32 fold, const u8 *code, u32 size) {
	struct program p;
	if (size < 6)
		return 0;
	p.length = n16(code);
	p.start = n16(code + 2);
	p.of_ranges = n16(code + 4);
	p.code = code + 6;
	p.ranges = p.code + 8 * p.length;
	if (p.length > MOST_INSTRUCTIONS || 6 + 8 * p.length + 8 * p.of_ranges > size)
		return 0;
	u32 now = 0, width = 0, matched;
	count[0] = 0;
	mark++;
	matched = add(&p, 0, p.start, 1, t.size == 0);
	for (u32 at_ = 0; at_ < t.size; at_ += width) {
		u32 c = folded(rune(t.at + at_, t.size - at_, &width), fold), last_ = at_ + width == t.size;
		count[1 - now] = 0;
		mark++;
		matched = 0;
		for (u32 i = 0; i < count[now]; i++) {
			const u8 *in = p.code + 8 * threads[now][i];
			u32 from = n16(in + 4), many = n16(in + 6);
			for (u32 r = from; r < from + many && r < p.of_ranges; r++)
				if (c >= n32(p.ranges + 8 * r) && c <= n32(p.ranges + 8 * r + 4)) {
					matched |= add(&p, 1 - now, n16(in + 2), 0, last_);
					break;
				}
		}
		now = 1 - now;
		if (count[now] == 0 && !last_)
			return 0;
	}
	return matched;
}
