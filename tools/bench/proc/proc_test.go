package proc

import (
	"os"
	"testing"
	"time"
)

func TestOwnProcess(t *testing.T) {
	before, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		now, err := CPU(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now-before >= 50*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a busy process used %s", now-before)
		}
	}
	// The two ways to ask agree, but for what /proc rounds.
	low, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	times, err := TimesOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	high, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if sum := times.Sum(); sum < low-2*tick || sum > high+2*tick {
		t.Errorf("/proc says %s, the clock of the process %s to %s", sum, low, high)
	}
	m, err := MemoryOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if m.Resident < 1<<20 || m.Own > m.Resident || m.Peak < m.Resident {
		t.Errorf("memory %+v makes no sense", m)
	}
}
