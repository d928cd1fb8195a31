package agents

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
)

// CommandName is that of Command, which a program has to have to start a Process.
const CommandName = "agents"

// Command is the process of some agents. On its standard input it is given Settings, then questions; it answers each, and the settings, with a
// Count, and ends with the input. All of it is JSON.
func Command() *cobra.Command {
	return &cobra.Command{
		Use: CommandName, Short: "The agents of a load test, which starts this itself", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return converse(cmd.InOrStdin(), cmd.OutOrStdout()) },
	}
}

// question is what a process is asked.
type question string

const (
	follow question = "follow" // Pilot from now on
	count  question = "count"
)

func converse(in io.Reader, out io.Writer) (err error) {
	questions, answers := json.NewDecoder(in), json.NewEncoder(out)
	var s Settings
	if err := questions.Decode(&s); err != nil {
		return fmt.Errorf("reading the agents' settings: %w", err)
	}
	a, err := New(s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	for {
		if err := answers.Encode(a.Count()); err != nil {
			return fmt.Errorf("answering: %w", err)
		}
		var q question
		if err := questions.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading a question: %w", err)
		}
		if q == follow {
			a.Follow()
		}
	}
}

// Process is agents in a process of their own.
type Process struct {
	cmd       *exec.Cmd
	in        io.WriteCloser
	questions *json.Encoder
	answers   *json.Decoder
}

// Start starts a process, by the program that calls it, and returns when the agents have their sockets. It does not outlive ctx, nor us.
func Start(ctx context.Context, s Settings, log io.Writer) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, CommandName)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return start(cmd, s)
}

func start(cmd *exec.Cmd, s Settings) (*Process, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the agents: %w", err)
	}
	p := &Process{cmd: cmd, in: in, questions: json.NewEncoder(in), answers: json.NewDecoder(out)}
	if _, err := p.ask(s); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

func (p *Process) ask(q any) (Count, error) {
	if err := p.questions.Encode(q); err != nil {
		return Count{}, fmt.Errorf("asking the agents: %w", err)
	}
	var c Count
	if err := p.answers.Decode(&c); err != nil {
		return Count{}, fmt.Errorf("the agents' answer: %w", err)
	}
	return c, nil
}

// Follow has the agents follow Pilot from now on.
func (p *Process) Follow() error {
	_, err := p.ask(follow)
	return err
}

// Count is what there has been between the agents and Pilot.
func (p *Process) Count() (Count, error) { return p.ask(count) }

// CPU is what the process has used since it began.
func (p *Process) CPU() (time.Duration, error) { return proc.CPU(p.cmd.Process.Pid) }

// Memory is what of the process is resident.
func (p *Process) Memory() (proc.Memory, error) { return proc.MemoryOf(p.cmd.Process.Pid) }

// Stop ends the process.
func (p *Process) Stop() error {
	err := p.in.Close()
	if e := p.cmd.Wait(); e != nil {
		err = errors.Join(err, fmt.Errorf("the agents' process: %w", e))
	}
	return err
}
