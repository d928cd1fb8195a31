package spool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string, max int64) *Spool {
	t.Helper()
	s, err := Open(dir, max, &telemetryv1.Workload{Node: "node1"}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func event(n int) *telemetryv1.Event { return &telemetryv1.Event{Path: fmt.Sprint("/", n)} }

func add(t *testing.T, s *Spool, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if !s.Append(event(n)) {
			t.Fatalf("event %d was dropped", n)
		}
	}
}

func readAll(t *testing.T, s *Spool) []*telemetryv1.Event {
	t.Helper()
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	r := newReader(s)
	defer r.close()
	var out []*telemetryv1.Event
	for {
		events, err := r.read(7)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) == 0 {
			return out
		}
		out = append(out, events...)
	}
}

func expect(t *testing.T, events []*telemetryv1.Event, from, to int) {
	t.Helper()
	if len(events) != to-from {
		t.Fatalf("%d events, want %d", len(events), to-from)
	}
	for i, e := range events {
		if e.GetPath() != fmt.Sprint("/", from+i) {
			t.Fatalf("event %d is %s", i, e.GetPath())
		}
		if i > 0 && e.GetSequence() <= events[i-1].GetSequence() {
			t.Fatalf("sequence %d after %d", e.GetSequence(), events[i-1].GetSequence())
		}
	}
}

func TestEventsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<30)
	id := s.ID()
	add(t, s, 0, 100)
	// No Close: the process was killed. What it wrote is in the operating system's cache.
	again := open(t, dir, 1<<30)
	if again.ID() != id {
		t.Fatal("another spool")
	}
	add(t, again, 100, 150)
	events := readAll(t, again)
	expect(t, events, 0, 150)
	if err := again.Ack(events[119].GetSequence()); err != nil {
		t.Fatal(err)
	}
	third := open(t, dir, 1<<30)
	expect(t, readAll(t, third), 120, 150)
}

func TestSequenceGoesOnWhenEverythingWasAcknowledged(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<30)
	add(t, s, 0, 10)
	last := readAll(t, s)[9].GetSequence()
	if err := s.Ack(last); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, 1<<30)
	add(t, again, 10, 11)
	if got := readAll(t, again); len(got) != 1 || got[0].GetSequence() != last+1 {
		t.Fatalf("%v after %d", got, last)
	}
}

func TestNothingIsSentBeforeItIsOnTheDisk(t *testing.T) {
	s := open(t, t.TempDir(), 1<<30)
	add(t, s, 0, 5)
	r := &reader{spool: s, next: 1}
	if events, err := r.read(10); err != nil || len(events) != 0 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	add(t, s, 5, 9)
	events, err := r.read(10)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, events, 0, 5)
	expect(t, readAll(t, s), 0, 9)
}

func TestSegmentsRollAndAcknowledgedOnesGo(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<30)
	big := string(make([]byte, 60<<10))
	const n = 400 // 24 MB
	for range n {
		if !s.Append(&telemetryv1.Event{Reason: big}) {
			t.Fatal("dropped")
		}
	}
	if files, _ := filepath.Glob(dir + "/*.seg"); len(files) < 3 {
		t.Fatalf("%d segments", len(files))
	}
	events := readAll(t, s)
	if len(events) != n {
		t.Fatalf("%d events", len(events))
	}
	if err := s.Ack(events[n-1].GetSequence()); err != nil {
		t.Fatal(err)
	}
	if files, _ := filepath.Glob(dir + "/*.seg"); len(files) != 1 {
		t.Fatalf("%d segments after everything was acknowledged", len(files))
	}
}

func TestFullSpoolRecordsHowManyAreMissing(t *testing.T) {
	s := open(t, t.TempDir(), 20<<20)
	big := string(make([]byte, 60<<10))
	kept, dropped := 0, 0
	for range 400 {
		if s.Append(&telemetryv1.Event{Reason: big}) {
			kept++
		} else {
			dropped++
		}
	}
	if dropped == 0 || s.Stats().Bytes > 20<<20 {
		t.Fatalf("%d kept, %d dropped, %d bytes", kept, dropped, s.Stats().Bytes)
	}
	events := readAll(t, s)
	if err := s.Ack(events[len(events)-1].GetSequence()); err != nil {
		t.Fatal(err)
	}
	add(t, s, 0, 1)
	after := readAll(t, s)
	if len(after) != 2 || after[0].GetLost() != uint64(dropped) || after[1].GetPath() != "/0" {
		t.Fatalf("after the gap: %v; %d were dropped", after, dropped)
	}
	if st := s.Stats(); st.Lost != uint64(dropped) || st.Failure != nil {
		t.Fatalf("stats %+v", st)
	}
}

func TestCutOffAndAlteredRecordsAreSkippedOver(t *testing.T) {
	for name, spoil := range map[string]func([]byte) []byte{
		"cut off":  func(b []byte) []byte { return b[:len(b)-3] },
		"altered":  func(b []byte) []byte { b[len(b)-2] ^= 0xff; return b },
		"zeros":    func(b []byte) []byte { return append(b, make([]byte, 100)...) },
		"rubbish":  func(b []byte) []byte { return append(b, "not a record at all"...) },
		"too long": func(b []byte) []byte { return append(b, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, 1<<30)
			add(t, s, 0, 10)
			last := readAll(t, s)[9].GetSequence()
			files, _ := filepath.Glob(dir + "/*.seg")
			b, err := os.ReadFile(files[len(files)-1])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(files[len(files)-1], spoil(b), 0o600); err != nil {
				t.Fatal(err)
			}
			again := open(t, dir, 1<<30)
			add(t, again, 10, 20)
			events := readAll(t, again)
			if n := len(events); n < 19 || events[n-1].GetPath() != "/19" {
				t.Fatalf("%d events", n)
			}
			// A number that may have been sent means one event only.
			if got := events[len(events)-10].GetSequence(); got <= last {
				t.Fatalf("sequence %d is used twice", got)
			}
		})
	}
}

func TestWriteErrorLosesOneEventAndNoMore(t *testing.T) {
	s := open(t, t.TempDir(), 1<<30)
	add(t, s, 0, 3)
	good := s.file
	broken, err := os.Open(os.DevNull) // read-only: writes fail
	if err != nil {
		t.Fatal(err)
	}
	s.file = broken
	if s.Append(event(3)) {
		t.Fatal("kept what could not be written")
	}
	if s.Stats().Failure == nil {
		t.Fatal("no failure is shown")
	}
	broken.Close()
	s.file = good
	add(t, s, 4, 6)
	events := readAll(t, s)
	if len(events) != 6 || events[3].GetLost() != 1 || events[5].GetPath() != "/5" {
		t.Fatalf("%v", events)
	}
}

func TestForeignAcknowledgementIsRefused(t *testing.T) {
	s := open(t, t.TempDir(), 1<<30)
	add(t, s, 0, 3)
	if err := s.Ack(99); err == nil {
		t.Fatal("took an acknowledgement of what was never sent")
	}
	expect(t, readAll(t, s), 0, 3)
}

// mixer is an intake that keeps events, and can be away or slow to acknowledge.
type mixer struct {
	telemetryv1.UnimplementedIntakeServer
	mu   sync.Mutex
	got  map[uint64]string
	fail int // streams to end after their first batch, without an acknowledgement
}

func (m *mixer) Events(stream grpc.BidiStreamingServer[telemetryv1.EventBatch, telemetryv1.Acknowledgement]) error {
	for {
		batch, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		m.mu.Lock()
		fail := m.fail > 0
		if fail {
			m.fail--
		}
		for _, e := range batch.GetEvents() {
			if old, ok := m.got[e.GetSequence()]; ok && old != e.GetPath() {
				m.mu.Unlock()
				return status.Errorf(codes.Internal, "two events are number %d", e.GetSequence())
			}
			m.got[e.GetSequence()] = e.GetPath()
		}
		last := batch.GetEvents()[len(batch.GetEvents())-1].GetSequence()
		m.mu.Unlock()
		if fail {
			return status.Error(codes.Unavailable, "restarting")
		}
		if err := stream.Send(&telemetryv1.Acknowledgement{Spool: batch.GetSpool(), Sequence: last}); err != nil {
			return err
		}
	}
}

func (m *mixer) has(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.got) == n
}

func serve(t *testing.T, m *mixer, address string) (*grpc.Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	telemetryv1.RegisterIntakeServer(g, m)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	return g, l.Addr().String()
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within 20 seconds: %s", what)
}

// Mixer is away at first, fails in the middle, is restarted, and the agent is too; every event arrives, under one number.
func TestEveryEventArrivesWhateverIsRestarted(t *testing.T) {
	dir := t.TempDir()
	m := &mixer{got: map[uint64]string{}, fail: 3}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()

	s := open(t, dir, 1<<30)
	stop := send(t, s, address)
	add(t, s, 0, 3000)
	server, _ := serve(t, m, address)
	eventually(t, "a first part", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.got) >= 500 })
	server.Stop()
	add(t, s, 3000, 6000)
	stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, dir, 1<<30)
	stop = send(t, s, address)
	defer stop()
	add(t, s, 6000, 7000)
	serve(t, m, address)
	eventually(t, "all 7000 events", func() bool { return m.has(7000) })
	eventually(t, "all acknowledged", func() bool { return s.Stats().Unacked == 0 })
	seen := map[string]bool{}
	for _, path := range m.got {
		if seen[path] {
			t.Fatalf("%s under two numbers", path)
		}
		seen[path] = true
	}
}

func send(t *testing.T, s *Spool, address string) (stop func()) {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&Sender{Spool: s, Conn: conn, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}).Run(ctx)
	}()
	return func() { cancel(); <-done; conn.Close() }
}
