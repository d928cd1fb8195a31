package space

import (
	"encoding/binary"
	"math/bits"
)

// set is a set of small numbers, of which all of one kind have the same size.
type set []uint64

func newSet(size int) set { return make(set, (size+63)/64) }

func full(size int) set {
	s := newSet(size)
	for i := range size {
		s.add(i)
	}
	return s
}

func (s set) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s set) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }

func (s set) or(other set) {
	for i := range other {
		s[i] |= other[i]
	}
}

func (s set) and(other set) {
	for i := range other {
		s[i] &= other[i]
	}
}

func (s set) minus(other set) set {
	out := make(set, len(s))
	for i := range s {
		out[i] = s[i] &^ other[i]
	}
	return out
}

func (s set) meets(other set) bool {
	for i := range s {
		if s[i]&other[i] != 0 {
			return true
		}
	}
	return false
}

func (s set) within(other set) bool {
	for i := range s {
		if s[i]&^other[i] != 0 {
			return false
		}
	}
	return true
}

func (s set) count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

func (s set) first() int {
	for i, w := range s {
		if w != 0 {
			return i*64 + bits.TrailingZeros64(w)
		}
	}
	return -1
}

func (s set) each(f func(int)) {
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			f(i*64 + bits.TrailingZeros64(w))
		}
	}
}

// key is the set as a key of maps.
func (s set) key() string {
	out := make([]byte, 0, 8*len(s))
	for _, w := range s {
		out = binary.LittleEndian.AppendUint64(out, w)
	}
	return string(out)
}
