package pods_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	counted "github.com/bulwark-mesh/bulwark/agent/internal/metrics"
	"github.com/bulwark-mesh/bulwark/agent/internal/pods"
	"github.com/bulwark-mesh/bulwark/agent/internal/sds"
	api "github.com/bulwark-mesh/bulwark/agent/internal/workloadapi"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// dialAs connects to a socket as a user does, whom the directories above it do not stop.
func dialAs(uid int, path string) (net.Conn, error) {
	var conn net.Conn
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		keep := ^uintptr(0)
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); e != 0 {
			done <- e
			return
		}
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_DAC_OVERRIDE, Permitted: 1 << unix.CAP_DAC_OVERRIDE}}
		err := unix.Capset(&header, &data[0])
		if err == nil {
			conn, err = net.Dial("unix", path)
		}
		done <- err
	}()
	err := <-done
	return conn, err
}

// admitted says whether a connection is served: the server's settings come first.
func admitted(t *testing.T, conn net.Conn) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := io.ReadFull(conn, make([]byte, 9))
	if err != nil && err != io.EOF && !isReset(err) {
		t.Fatal(err)
	}
	return err == nil
}

func isReset(err error) bool {
	op, ok := err.(*net.OpError)
	return ok && op.Err.Error() == "read: connection reset by peer"
}

func TestNobodyInAPodTakesItsProxysConnections(t *testing.T) {
	n := newNode(t)
	v := n.volume("p1", "payroll")
	v.Any = true
	n.publish(v, "token1")
	path := short(t, v)
	var open []net.Conn
	in := func(uid int) (count int) {
		for range 20 {
			conn, err := dialAs(uid, path)
			if err != nil {
				t.Fatal(err)
			}
			if open = append(open, conn); admitted(t, conn) {
				count++
			}
		}
		return count
	}
	for i, want := range []int{16, 16, 0} {
		if got := in(6000 + i); got != want {
			t.Errorf("user %d has %d connections, not %d", 6000+i, got, want)
		}
	}
	if got := in(mesh.ProxyUID); got != 20 {
		t.Errorf("the proxy has %d connections of 20", got)
	}
	other := n.volume("p2", "web")
	n.publish(other, "token2")
	subscribe(t, other).certificate()
	// Who goes makes room.
	for _, conn := range open {
		conn.Close()
	}
	until(t, "room", func() bool { return in(6003) > 0 })
	for _, conn := range open {
		conn.Close()
	}
}

func TestSilentConnectionsDoNotDelayThePodsEnd(t *testing.T) {
	n := newNode(t)
	v := n.volume("p1", "payroll")
	n.publish(v, "token1")
	for range 3 {
		conn, err := dialAs(mesh.ProxyUID, short(t, v))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		admitted(t, conn)
	}
	begun := time.Now()
	if err := n.registry.Unpublish(v.ID, v.Target); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %v, and the registry's lock", took)
	}
}

// raw is a codec for what no client of good will sends.
type raw struct{}

func (raw) Name() string                    { return "proto" }
func (raw) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { return nil }

// TestHostilePodLeavesTheAgentItsMemory has a process of a pod send all that it can, and more, on as many streams of as
// many connections as it gets.
func TestHostilePodLeavesTheAgentItsMemory(t *testing.T) {
	if path := os.Getenv("HOSTILE_SOCKET"); path != "" {
		attacks[os.Getenv("HOSTILE_ATTACK")](path) // which does not return
	}
	n := newNode(t)
	n.registry.Close()
	var err error
	if n.registry, err = pods.New(filepath.Join(n.dir, "state"), n.tokens, n.issuer, n.log, sds.Attach(n.bundle, quiet), api.Attach(n.bundle), counted.New().Attach); err != nil {
		t.Fatal(err)
	}
	other := n.volume("p2", "web")
	n.publish(other, "token2")
	neighbour := dial(t, other)
	fetch(t, neighbour)
	for name := range attacks {
		t.Run(name, func(t *testing.T) {
			hostile := n.volume("p1", "payroll")
			hostile.Any = true
			n.publish(hostile, "token1")
			defer func() {
				if err := n.registry.Unpublish(hostile.ID, hostile.Target); err != nil {
					t.Error(err)
				}
			}()
			attacked(t, name, short(t, hostile), neighbour)
		})
	}
}

// attacked watches the heap, and serves the neighbour, while an attack is under way.
func attacked(t *testing.T, attack, path string, neighbour *grpc.ClientConn) {
	const bound = 256 << 20
	const length = 2 * time.Second
	runtime.GC()
	before := heap()
	pod := exec.Command(os.Args[0], "-test.run=^TestHostilePodLeavesTheAgentItsMemory$")
	pod.Env = append(os.Environ(), "HOSTILE_SOCKET="+path, "HOSTILE_ATTACK="+attack)
	pod.Stderr = os.Stderr
	if err := pod.Start(); err != nil {
		t.Fatal(err)
	}
	peak, slowest, served := before, time.Duration(0), 0
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			if peak = max(peak, heap()); peak > before+4*bound {
				_ = pod.Process.Kill() // before it takes this machine along
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	for begun := time.Now(); time.Since(begun) < length; served++ {
		asked := time.Now()
		fetch(t, neighbour)
		slowest = max(slowest, time.Since(asked))
	}
	close(stop)
	watch.Wait()
	_ = pod.Process.Kill()
	_ = pod.Wait() // it was killed
	t.Logf("heap %d MiB, at most %d MiB; another pod was served %d times, in %v at most", before>>20, peak>>20, served, slowest)
	if peak > before+bound {
		t.Errorf("the heap grew by %d MiB, more than %d", (peak-before)>>20, bound>>20)
	}
	if slowest > 5*time.Second {
		t.Errorf("another pod waited for %v", slowest)
	}
}

// fetch gets an SVID by the Workload API.
func fetch(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "workload.spiffe.io", "true"), 20*time.Second)
	defer cancel()
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func heap() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

const (
	streamMetrics = "/envoy.service.metrics.v3.MetricsService/StreamMetrics"
	deltaSecrets  = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"
	fetchSVID     = "/SpiffeWorkloadAPI/FetchX509SVID"
	most          = 16 << 20
)

var attacks = map[string]func(path string){
	"large messages": func(path string) {
		name := append([]byte{0x0a}, binary.AppendUvarint(nil, most-100)...)
		name = append(name, make([]byte, most-100)...)
		flood(path, 1, streamMetrics, append(append([]byte{0x12}, binary.AppendUvarint(nil, uint64(len(name)))...), name...))
	},
	"huge when decoded":              func(path string) { flood(path, 1, streamMetrics, bytes.Repeat([]byte{0x12, 0}, most/2)) },
	"small, huge when decoded":       func(path string) { flood(path, 50, streamMetrics, bytes.Repeat([]byte{0x12, 0}, 32<<10)) },
	"names without end":              func(path string) { flood(path, 1, deltaSecrets, bytes.Repeat([]byte{0x1a, 0}, most/2)) },
	"large messages on many streams": func(path string) { flood(path, 50, streamMetrics, make([]byte, most)) },
	"streams":                        func(path string) { flood(path, 50, fetchSVID, nil) },
	"messages without end": func(path string) {
		for range 40 {
			go unending(path)
		}
		select {}
	},
}

// flood sends a message again and again on so many streams of each connection.
func flood(path string, streams int, method string, message []byte) {
	for i := range 40 {
		for _, uid := range []int{mesh.ProxyUID, 6000 + i} {
			conn, err := grpc.NewClient("passthrough:///agent", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return dialAs(uid, path) }))
			if err != nil {
				panic(err)
			}
			for range streams {
				go func() {
					ctx := metadata.AppendToOutgoingContext(context.Background(), "workload.spiffe.io", "true")
					for ; ; time.Sleep(10 * time.Millisecond) { // it may have been refused
						stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodec(raw{}))
						for err == nil {
							err = stream.SendMsg(message)
						}
					}
				}()
			}
		}
	}
	select {}
}

// unending has many messages of the largest size begin on a connection.
func unending(path string) {
	for {
		conn, err := dialAs(mesh.ProxyUID, path)
		if err != nil {
			continue
		}
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		_, _ = conn.Write([]byte(http2.ClientPreface))
		f := http2.NewFramer(conn, conn)
		_ = f.WriteSettings()
		var headers bytes.Buffer
		e := hpack.NewEncoder(&headers)
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", streamMetrics}, {":authority", "agent"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
			_ = e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: true})
		}
		prefix := binary.BigEndian.AppendUint32([]byte{0}, 16<<20-1)
		err = nil
		for id := uint32(1); id < 60 && err == nil; id += 2 {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headers.Bytes(), EndHeaders: true})
			_ = f.WriteData(id, false, prefix)
			for range 3 {
				err = f.WriteData(id, false, make([]byte, 16<<10))
			}
		}
		time.Sleep(3 * time.Second) // and waits
		conn.Close()
	}
}
