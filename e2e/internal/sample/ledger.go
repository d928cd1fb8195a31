package sample

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
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

// TCP returns the subcommand that sends lines to the ledger and prints each answer.
func TCP() *cobra.Command {
	var count int
	cmd := &cobra.Command{Use: "tcp ADDRESS", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		for range count {
			l := ledger{address: args[0]}
			var out TCPResult
			var err error
			if out.Answer, err = l.ask(cmd.Context()); err != nil {
				out.Error = err.Error()
			}
			l.hangUp()
			if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
				return err
			}
		}
		return nil
	}}
	cmd.Flags().IntVar(&count, "count", 1, "how many, each over a connection of its own")
	return cmd
}

// Open returns the subcommand that connects and says whether the connection is still open after two seconds: how to wait for a server of any protocol, since a
// proxy accepts connections to servers that are not there.
func Open() *cobra.Command {
	return &cobra.Command{Use: "open ADDRESS", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		conn, err := (&net.Dialer{Timeout: requestTimeout}).DialContext(cmd.Context(), "tcp", args[0])
		if err != nil {
			return json.NewEncoder(os.Stdout).Encode(false)
		}
		defer conn.Close()
		if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		_, err = conn.Read(make([]byte, 1))
		return json.NewEncoder(os.Stdout).Encode(err == nil || errors.Is(err, os.ErrDeadlineExceeded))
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
