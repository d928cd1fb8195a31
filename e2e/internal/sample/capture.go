package sample

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// CaptureResult is what Capture prints of the TCP segments on an interface.
type CaptureResult struct {
	Segments     int            `json:"segments"`
	Bytes        int            `json:"bytes"`        // of payload
	ServerHellos map[string]int `json:"serverHellos"` // by negotiated version
	AppData      int            `json:"appData"`      // segments that begin a TLS record of encrypted data
	Found        map[string]int `json:"found"`        // how often each needle was seen in clear
}

// Capture returns the subcommand of an eavesdropper: it reads every packet of the pod's interface (needs NET_RAW), looks
// at TLS records, and for words that should not be readable.
func Capture() *cobra.Command {
	var device string
	var port uint16
	var duration time.Duration
	var needles []string
	cmd := &cobra.Command{Use: "capture", RunE: func(*cobra.Command, []string) error {
		result, err := capture(device, port, duration, needles)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(result)
	}}
	cmd.Flags().StringVar(&device, "interface", "eth0", "interface")
	cmd.Flags().Uint16Var(&port, "port", 8080, "only segments from or to this port")
	cmd.Flags().DurationVar(&duration, "duration", 5*time.Second, "how long")
	cmd.Flags().StringSliceVar(&needles, "needle", nil, "words to look for")
	return cmd
}

func capture(device string, port uint16, duration time.Duration, needles []string) (*CaptureResult, error) {
	iface, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", device, err)
	}
	const all = uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xffff) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket (NET_RAW is needed): %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: iface.Index}); err != nil {
		return nil, fmt.Errorf("binding to %s: %w", device, err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return nil, err
	}
	fmt.Fprintln(os.Stderr, "capturing")
	out := &CaptureResult{ServerHellos: map[string]int{}, Found: map[string]int{}}
	for _, n := range needles {
		out.Found[n] = 0
	}
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(duration); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading packets: %w", err)
		}
		out.look(buf[:n], port, needles)
	}
	return out, nil
}

func (r *CaptureResult) look(frame []byte, port uint16, needles []string) {
	packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	tcp, ok := packet.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if !ok || (uint16(tcp.SrcPort) != port && uint16(tcp.DstPort) != port) || len(tcp.Payload) == 0 {
		return
	}
	r.Segments++
	r.Bytes += len(tcp.Payload)
	for _, n := range needles {
		r.Found[n] += bytes.Count(tcp.Payload, []byte(n))
	}
	if p := tcp.Payload; len(p) > 5 && p[0] == 23 && p[1] == 3 {
		r.AppData++
	}
	if version := serverHello(tcp.Payload); version != "" {
		r.ServerHellos[version]++
	}
}

// serverHello returns the version that a ServerHello at the beginning of a segment settles (RFC 8446, 4.1.3 and 4.2.1).
func serverHello(p []byte) string {
	const record, handshake = 5, 4
	if len(p) < record+handshake+2+32+1 || p[0] != 22 || p[record] != 2 {
		return ""
	}
	body := p[record+handshake:]
	version := binary.BigEndian.Uint16(body)
	i := 2 + 32
	i += 1 + int(body[i]) + 2 + 1 + 2 // session ID, cipher suite, compression, length of the extensions
	for i+4 <= len(body) {
		kind, length := binary.BigEndian.Uint16(body[i:]), int(binary.BigEndian.Uint16(body[i+2:]))
		if kind == 43 && i+6 <= len(body) {
			version = binary.BigEndian.Uint16(body[i+4:])
		}
		i += 4 + length
	}
	switch version {
	case 0x0304:
		return "TLS 1.3"
	case 0x0303:
		return "TLS 1.2"
	default:
		return fmt.Sprintf("0x%04x", version)
	}
}
