package proc

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const tail = " 1 10 10 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 98765 1000 200"
	for _, tc := range []struct {
		name, stat string
		want       uint64
		ok         bool
	}{
		{"plain", "10 (etcd) S" + tail, 98765, true},
		{"command with brackets and spaces", "10 (a) b (c) S" + tail, 98765, true},
		{"zombie", "10 (etcd) Z" + tail, 0, false},
		{"zombie with threads that are still ending", "10 (etcd) Z 1 10 10 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 12 0 98765 1000 200", 98765, true},
		{"truncated", "10 (etcd) S 1 2", 0, false},
	} {
		got, err := parseStat(tc.stat)
		if (err == nil) != tc.ok || got != tc.want {
			t.Errorf("%s: got %d, %v", tc.name, got, err)
		}
	}
}

func TestKillSparesAnotherProcessWithTheSamePID(t *testing.T) {
	p, err := Start(Options{Name: "sleep", Log: filepath.Join(t.TempDir(), "log")}, "/bin/sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	stranger := p
	stranger.Start--
	stranger.Kill()
	if !p.Alive() {
		t.Fatal("killed a process that was not the one recorded")
	}
	p.Kill()
	for deadline := time.Now().Add(5 * time.Second); p.Alive(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still alive after Kill")
		}
	}
	if self, err := startTime(os.Getpid()); err != nil || self == 0 {
		t.Errorf("own start time: %d, %v", self, err)
	}
}
