package sample

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// TCPResult is what TCP prints.
type TCPResult struct {
	Answer string `json:"answer,omitempty"`
	Error  string `json:"error,omitempty"`
}

// TCP returns the subcommand that sends a line to the ledger and reads the answer.
func TCP() *cobra.Command {
	return &cobra.Command{Use: "tcp ADDRESS", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		l := ledger{address: args[0]}
		defer l.hangUp()
		var out TCPResult
		var err error
		if out.Answer, err = l.ask(cmd.Context()); err != nil {
			out.Error = err.Error()
		}
		return json.NewEncoder(os.Stdout).Encode(out)
	}}
}

// ledger is a connection to the ledger, made when it is needed.
type ledger struct {
	address string
	conn    net.Conn
	lines   *bufio.Reader
}

func (l *ledger) ask(ctx context.Context) (answer string, err error) {
	if l.conn == nil {
		conn, err := (&net.Dialer{Timeout: requestTimeout}).DialContext(ctx, "tcp", l.address)
		if err != nil {
			return "", err
		}
		l.conn, l.lines = conn, bufio.NewReader(conn)
	}
	if err := l.conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(l.conn, "balance?"); err != nil {
		return "", err
	}
	if answer, err = l.lines.ReadString('\n'); err != nil {
		return answer, fmt.Errorf("reading the answer: %w", err)
	}
	return answer, nil
}

func (l *ledger) hangUp() {
	if l.conn != nil {
		_ = l.conn.Close()
		l.conn = nil
	}
}
