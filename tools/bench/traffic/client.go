package traffic

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spf13/pflag"
)

// Target is what a client asks for.
type Target struct{ Address, Host, Path, Token string }

// Args are the target as command-line arguments.
func (t Target) Args() []string {
	return []string{"--target", t.Address, "--host", t.Host, "--path", t.Path, "--token", t.Token}
}

func (t *Target) addFlags(f *pflag.FlagSet) {
	f.StringVar(&t.Address, "target", "", "")
	f.StringVar(&t.Host, "host", "", "")
	f.StringVar(&t.Path, "path", "/", "")
	f.StringVar(&t.Token, "token", "", "")
}

// bearer is the header of a request's token; empty if it has none.
func (t Target) bearer() string {
	if t.Token == "" {
		return ""
	}
	return "Authorization: Bearer " + t.Token + "\r\n"
}

const answerWithin = 5 * time.Second

func (t Target) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{Timeout: answerWithin}).DialContext(ctx, "tcp", t.Address)
}

// connection is one kept-alive HTTP/1.1 connection, at as little cost as the measured programs deserve.
type connection struct {
	net.Conn
	reader  *bufio.Reader
	request []byte
	ended   bool // by the last answer
}

func (t Target) connect(ctx context.Context) (*connection, error) {
	conn, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	return &connection{Conn: conn, reader: bufio.NewReader(conn), request: fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", t.Path, t.Host, t.bearer())}, nil
}

// get sends the request and reads the answer, its body into body.
func (c *connection) get(body io.Writer) (code int, err error) {
	if err := c.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return 0, err
	}
	if _, err := c.Write(c.request); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(body, resp.Body); err != nil {
		return 0, err
	}
	c.ended = resp.Close
	return resp.StatusCode, nil
}
