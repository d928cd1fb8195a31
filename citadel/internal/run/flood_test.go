package run

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	securityapi "istio.io/api/security/v1alpha1"
)

// attackEnv has the address that a test binary attacks when it is run for that, as a process of its own: neither its memory
// nor, as it is nice, its work is taken for the server's.
const attackEnv = "CITADEL_ATTACK"

// attacked measures how long calls take before, and while the test's attack runs in another process: fair says whether the
// one is like the other. As the machine may have other work, it is asked up to three times. The server's memory may grow by
// 64 MiB.
func attacked(t *testing.T, addr string, call func() error, fair func(quietly, meanwhile latencies) bool) {
	t.Helper()
	if raced() {
		t.Skip("the race detector is on, by which a stream costs many times as much: what is measured here is without it")
	}
	measure(t, 200*time.Millisecond, call) // connects
	quietly := measure(t, 2*time.Second, call)
	var memory, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory)
	attacker := exec.Command("nice", "-n", "19", os.Args[0], "-test.run=^"+t.Name()+"$")
	attacker.Env, attacker.Stderr = append(os.Environ(), attackEnv+"="+addr), os.Stderr
	out, err := attacker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := attacker.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if lines.Scan(); lines.Text() != "attacking" {
		t.Fatalf("the attacker's process: %q, %v", lines.Text(), lines.Err())
	}
	measure(t, time.Second, call) // meanwhile it fills the buffers of the kernel
	var grown int64
	for try := 1; ; try++ {
		meanwhile := measure(t, 3*time.Second, call)
		runtime.ReadMemStats(&during)
		grown = max(grown, (int64(during.HeapInuse)-int64(memory.HeapInuse))>>20)
		t.Logf("median, 90th and 99th percentile of a call: %s, %s, %s; under attack %s, %s, %s; the heap grew by %d MiB",
			quietly.p(50), quietly.p(90), quietly.p(99), meanwhile.p(50), meanwhile.p(90), meanwhile.p(99), grown)
		if fair(quietly, meanwhile) {
			break
		}
		if try == 3 {
			t.Error("others wait for an attacker")
			break
		}
	}
	if err := attacker.Process.Kill(); err != nil {
		t.Errorf("the attack did not last: %v", err)
	}
	if _ = attacker.Wait(); attacker.ProcessState.Exited() {
		t.Errorf("the attack did not last: %s", attacker.ProcessState)
	}
	if grown > 64 {
		t.Errorf("the heap grew by %d MiB", grown)
	}
}

// raced says whether this binary has the race detector.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// latencies are what calls took, the longest last.
type latencies []time.Duration

func (l latencies) p(percent int) time.Duration {
	return l[len(l)*percent/100].Round(10 * time.Microsecond)
}

// measure calls again and again, with a pause in between.
func measure(t *testing.T, during time.Duration, call func() error) latencies {
	t.Helper()
	var took latencies
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		began := time.Now()
		if err := call(); err != nil {
			t.Fatalf("a well-behaved caller is refused: %v", err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took
}

// as makes an attack of what the test's other process does; it does not return.
func as(attack func(addr string)) {
	addr := os.Getenv(attackEnv)
	if addr == "" {
		return
	}
	attack(addr)
	fmt.Println("attacking")
	time.Sleep(time.Hour)
	runtime.KeepAlive(attack)
}

var (
	attackersTLS = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}} //nolint:gosec // an attacker asks nobody who they are
	// elsewhere is another address than that of the well-behaved caller.
	elsewhere = &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// Streams that are reset as soon as they are opened are not counted as open (CVE-2023-44487): several connections bring
// them as fast as they can, and a caller at another address has its certificates as before. Without a bound on how fast
// streams are opened, one call in ten takes hundreds of times as long.
func TestRapidResetStarvesNobody(t *testing.T) {
	as(func(addr string) {
		for range 8 {
			go resetForever(addr)
		}
	})
	c := newCitadel(t)
	client := c.trust.client(t, c.addr)
	issue := func() error { _, err := c.issue(t.Context(), client); return err }
	attacked(t, c.addr, issue, func(quietly, meanwhile latencies) bool {
		// What is added is for a machine that has other work to do too.
		return meanwhile.p(50) <= 2*quietly.p(50)+10*time.Millisecond && meanwhile.p(90) <= 2*quietly.p(90)+50*time.Millisecond
	})
}

// resetForever opens streams and resets them, until the connection ends, and the process with it.
func resetForever(addr string) {
	conn, err := tls.DialWithDialer(elsewhere, "tcp", addr, attackersTLS)
	must(err)
	go func() {
		_, err := bufio.NewReader(conn).WriteTo(discard{})
		panic(fmt.Sprint("the connection ended: ", err))
	}()
	fmt.Fprint(conn, http2.ClientPreface)
	var block, frames bytes.Buffer
	headers, framer := hpack.NewEncoder(&block), http2.NewFramer(&frames, nil)
	must(framer.WriteSettings())
	for id := uint32(1); ; id += 2 {
		block.Reset()
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", securityapi.IstioCertificateService_CreateCertificate_FullMethodName},
			{":authority", "citadel"}, {"content-type", "application/grpc"}, {"te", "trailers"}, {"authorization", "Bearer word"}} {
			must(headers.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
		}
		must(framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}))
		must(framer.WriteRSTStream(id, http2.ErrCodeCancel))
		if frames.Len() > 4<<10 {
			_, err := conn.Write(frames.Bytes())
			must(err)
			frames.Reset()
		}
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// Ten thousand calls at once over one connection, a thousand connections that never finish their handshake, and two
// hundred that have finished it and then neither say nor read anything: others are served as before.
func TestFloodOfCallsAndOfConnectionsThatStallIsBounded(t *testing.T) {
	var open []net.Conn // one that nobody knows any more would be closed
	as(func(addr string) {
		for range 1000 {
			conn, err := net.Dial("tcp", addr)
			must(err)
			open = append(open, conn)
			fmt.Fprint(conn, "\x16\x03\x01") // the beginning of a handshake
		}
		for range 200 {
			conn, err := tls.DialWithDialer(elsewhere, "tcp", addr, attackersTLS)
			must(err)
			open = append(open, conn)
			fmt.Fprint(conn, http2.ClientPreface)
			must(http2.NewFramer(conn, nil).WriteSettings())
		}
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(attackersTLS)))
		must(err)
		client := securityapi.NewIstioCertificateServiceClient(conn)
		var begun sync.WaitGroup
		for range 10000 {
			begun.Add(1)
			go func() {
				begun.Done()
				for {
					_, _ = client.CreateCertificate(context.Background(), &securityapi.IstioCertificateRequest{})
				}
			}()
		}
		begun.Wait()
	})
	service := &patient{takes: 50 * time.Millisecond}
	addr, trust := csrPort(t, service)
	client := trust.client(t, addr)
	attacked(t, addr, func() error {
		call, done := context.WithTimeout(t.Context(), 10*time.Second)
		defer done()
		_, err := client.CreateCertificate(call, &securityapi.IstioCertificateRequest{})
		return err
	}, func(quietly, meanwhile latencies) bool { return meanwhile.p(90) <= 2*quietly.p(90)+50*time.Millisecond })
	if most := service.most.Load(); most > 101 {
		t.Errorf("%d calls of one connection were worked on at once", most)
	}
}
