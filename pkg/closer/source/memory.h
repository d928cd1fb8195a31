// Memory. What the host returns for a moment is in a space that is used again and again; what is kept is in blocks whose size is a power of two, of which
// those that were given back are taken first.
extern u8 __heap_base;
static u32 top;
static u8 space[64 << 10] __attribute__((aligned(16)));
static u32 used;
static struct block { struct block *next; } *blocks[32];

static u32 class(u32 size) {
	u32 c = 5;
	while (c < 31 && 1u << c < size)
		c++;
	return c;
}

static u8 *taken(u32 size) {
	u32 c = class(size);
	struct block *b = blocks[c];
	if (b) {
		blocks[c] = b->next;
		return (u8 *)b;
	}
	if (top == 0)
		top = ((u32)&__heap_base + 15) & ~15u;
	u32 after = top + (1u << c);
	u32 have = __builtin_wasm_memory_size(0) << 16;
	if (after < top || (after > have && __builtin_wasm_memory_grow(0, (after - have + 65535) >> 16) == (__SIZE_TYPE__)-1))
		return 0;
	u8 *out = (u8 *)top;
	top = after;
	return out;
}

static void given(u8 *memory, u32 size) {
	struct block *b = (struct block *)memory;
	b->next = blocks[class(size)];
	blocks[class(size)] = b;
}

static void copy(u8 *to, const u8 *from, u32 size) { __builtin_memcpy(to, from, size); }

// What does not fit into the space any more is in a block, which has to be given back.
EXPORT(malloc) u8 *allocate(u32 size) {
	u32 from = (used + 15) & ~15u;
	if (size > sizeof space - from)
		return taken(size);
	used = from + size;
	return space + from;
}
