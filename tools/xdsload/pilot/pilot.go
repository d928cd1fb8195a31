// Package pilot runs a Pilot as a process of this machine, so that what it costs can be read exactly.
package pilot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
)

const (
	readyWithin = 60 * time.Second
	stopWithin  = 10 * time.Second
)

// Options say how Pilot is run.
type Options struct {
	Binary     string
	Kubeconfig string
	Citadel    string // address of the CSR service
	Token      string // for it
	Dir        string // of the token and the log
	Args       []string
}

// Pilot is the process.
type Pilot struct {
	Address    string // for agents
	monitoring string
	options    Options
	cmd        *exec.Cmd
	exited     chan struct{}
	err        error
}

// New chooses ports, which stay the same when Pilot is started anew.
func New(o Options) (*Pilot, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(o.Dir, "token"), []byte(o.Token), 0o600); err != nil {
		return nil, fmt.Errorf("Pilot's token: %w", err)
	}
	return &Pilot{Address: ports[0], monitoring: ports[1], options: o}, nil
}

func freePorts(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("finding a free port: %w", err)
		}
		defer l.Close()
		out = append(out, l.Addr().String())
	}
	return out, nil
}

// Start runs Pilot and returns when it is ready.
func (p *Pilot) Start(ctx context.Context) error {
	log, err := os.OpenFile(p.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("Pilot's log: %w", err)
	}
	defer log.Close()
	const any = "127.0.0.1:0"
	p.cmd = exec.Command(p.options.Binary, append([]string{
		"--kubeconfig=" + p.options.Kubeconfig, "--citadel=" + p.options.Citadel, "--tokenFile=" + filepath.Join(p.options.Dir, "token"),
		"--listen.xds=" + p.Address, "--listen.monitoring=" + p.monitoring, "--listen.webhook=" + any, "--listen.operator=" + any,
	}, p.options.Args...)...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it does not outlive us, however we end
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting Pilot: %w", err)
	}
	p.exited = make(chan struct{})
	go func() { p.err = p.cmd.Wait(); close(p.exited) }()
	return p.awaitReady(ctx)
}

func (p *Pilot) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !p.serving(ctx) {
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("Pilot ended: %w\n%s", p.err, p.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("Pilot is not ready: %w\n%s", ctx.Err(), p.lastWords())
		}
	}
	return nil
}

// serving reports whether Pilot says that it is ready and takes connections of agents.
func (p *Pilot) serving(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.monitoring+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.Address)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// Stop ends the process.
func (p *Pilot) Stop() error {
	if p.exited == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping Pilot: %w", err)
	}
	select {
	case <-p.exited:
	case <-time.After(stopWithin):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	p.exited = nil
	return nil
}

// Kill ends the process at once, as a machine does that fails.
func (p *Pilot) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("killing Pilot: %w", err)
	}
	<-p.exited
	p.exited = nil
	return nil
}

// CPU is what the process has used since it began.
func (p *Pilot) CPU() (time.Duration, error) { return proc.CPU(p.cmd.Process.Pid) }

// Memory is what of the process is resident.
func (p *Pilot) Memory() (proc.Memory, error) { return proc.MemoryOf(p.cmd.Process.Pid) }

// MetricsURL is where Pilot's own metrics are.
func (p *Pilot) MetricsURL() string { return "http://" + p.monitoring + "/metrics" }

// LogFile is where Pilot's log goes.
func (p *Pilot) LogFile() string { return filepath.Join(p.options.Dir, "pilot.log") }

func (p *Pilot) lastWords() []byte {
	log, err := os.ReadFile(p.LogFile())
	if err != nil {
		return nil
	}
	return bytes.TrimSpace(log[max(0, len(log)-2000):])
}
