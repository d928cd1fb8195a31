package keyserver

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/bulwark-mesh/bulwark/pkg/jwt"
)

// Bounds of what a key server may do to Pilot.
const (
	maxRedirects = 5
	maxDocument  = 64 << 10 // bytes of a discovery document
)

// client asks key servers. Their addresses come from whoever may write a RequestAuthentication, so that Pilot would be a way into networks that only it is in, if it
// went wherever it is sent: each address is judged when it is dialled, after names are resolved, and again for each redirect.
type client struct {
	private []string                // hosts that may have private addresses, in lower case
	forbids func(netip.Addr) string // why an address of the cluster's own must not be asked; empty if it may
	judge   func(host string, at netip.Addr) error
	http    *http.Client
}

func newClient(private []string, forbids func(netip.Addr) string) *client {
	c := &client{forbids: forbids}
	c.judge = c.mayAsk
	for _, host := range private {
		c.private = append(c.private, strings.ToLower(host))
	}
	c.http = &http.Client{
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			switch {
			case len(via) > maxRedirects:
				return fmt.Errorf("more than %d redirects", maxRedirects)
			case via[0].URL.Scheme == "https" && r.URL.Scheme != "https":
				return errors.New("it redirects from https to http")
			}
			return jwt.CheckURI(r.URL.String())
		},
		Transport: &http.Transport{
			Proxy: nil, DialContext: c.dial, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10, TLSHandshakeTimeout: jwt.MaxTimeout,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, // key servers are others' (RFC 9325, section 3.1.1)
		},
	}
	return c
}

// dial connects to a host if its address may be asked.
func (c *client) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Control: func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return c.judge(strings.ToLower(host), at.Addr().Unmap())
	}}
	return dialer.DialContext(ctx, network, address)
}

// metadata are addresses at which clouds tell machines their secrets, beside those that are link-local.
var metadata = []netip.Addr{
	netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("168.63.129.16"), netip.MustParseAddr("192.0.0.192"), netip.MustParseAddr("fd00:ec2::254"),
	netip.MustParseAddr("fd20:ce::254"),
}

// shared is the space of addresses between a provider and its customers (RFC 6598); translated are those of IPv6 that stand for one of IPv4 (RFC 6052, RFC 3056).
var (
	shared     = netip.MustParsePrefix("100.64.0.0/10")
	translated = []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2002::/16")}
)

// mayAsk says why the address of a host must not be asked.
func (c *client) mayAsk(host string, at netip.Addr) error {
	switch {
	case at.IsLoopback(), at.IsUnspecified(), at.IsLinkLocalUnicast(), at.IsMulticast(), at.Zone() != "":
		return refused(host, at, "is of this machine or its link")
	case slices.Contains(metadata, at):
		return refused(host, at, "is a cloud's metadata service")
	case slices.ContainsFunc(translated, func(p netip.Prefix) bool { return p.Contains(at) }):
		return refused(host, at, "stands for another one")
	}
	if why := c.forbids(at); why != "" {
		return refused(host, at, why)
	}
	if (at.IsPrivate() || shared.Contains(at)) && !slices.ContainsFunc(c.private, func(allowed string) bool {
		suffix, wild := strings.CutPrefix(allowed, "*")
		return host == allowed || wild && strings.HasSuffix(host, suffix)
	}) {
		return refused(host, at, "is private, and the host is not among those that may have such an address (keyServers.privateHosts of the installation)")
	}
	return nil
}

func refused(host string, at netip.Addr, why string) error {
	return fmt.Errorf("address %s of %s %s", at, host, why)
}

// fetch returns a source's keys, and for how long its server says that they hold; 0 if it does not.
func (c *client) fetch(ctx context.Context, s jwt.Source) (keys jwt.Keys, dropped []string, lasts time.Duration, err error) {
	at := s.URI
	if s.Discovery {
		if at, err = c.discover(ctx, s); err != nil {
			return jwt.Keys{}, nil, 0, err
		}
	}
	text, header, err := c.get(ctx, at, jwt.MaxKeysSize)
	if err != nil {
		return jwt.Keys{}, nil, 0, err
	}
	if keys, dropped, err = jwt.ReadKeys(text); err != nil {
		return jwt.Keys{}, nil, 0, fmt.Errorf("%s: %w", shown(at), err)
	}
	return keys, dropped, lifetime(header), nil
}

// discover returns where an issuer says that its keys are (OpenID Connect Discovery 1.0, sections 4.1 and 4.3). An issuer with a path is asked in the other place, too, that
// RFC 8414 gives it (section 3.1).
func (c *client) discover(ctx context.Context, s jwt.Source) (string, error) {
	text, _, err := c.get(ctx, s.String(), maxDocument)
	if err != nil {
		return "", err
	}
	var document struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return "", fmt.Errorf("%s: it is no discovery document", shown(s.String()))
	}
	if document.Issuer != s.URI {
		return "", fmt.Errorf("%s: it is the document of issuer %q, not of %q", shown(s.String()), cut(document.Issuer), cut(s.URI))
	}
	if err := jwt.CheckURI(document.Keys); err != nil {
		return "", fmt.Errorf("%s: jwks_uri: %w", shown(s.String()), err)
	}
	if strings.HasPrefix(s.URI, "https:") && !strings.HasPrefix(document.Keys, "https:") {
		return "", fmt.Errorf("%s: jwks_uri is of http, and the issuer of https", shown(s.String()))
	}
	return document.Keys, nil
}

// get returns what is at a URL.
func (c *client) get(ctx context.Context, at string, most int64) ([]byte, http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, http.NoBody)
	if err != nil {
		return nil, nil, fmt.Errorf("asking %s: %w", shown(at), err)
	}
	r.Header.Set("User-Agent", "bulwark-pilot")
	r.Header.Set("Accept", "application/json, application/jwk-set+json")
	resp, err := c.http.Do(r)
	if err != nil {
		var of *url.Error // which quotes the whole URL
		if errors.As(err, &of) {
			err = of.Err
		}
		return nil, nil, fmt.Errorf("asking %s: %w", shown(at), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("asking %s: %w %s", shown(at), errAnswer, cut(resp.Status))
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return nil, nil, fmt.Errorf("asking %s: %w", shown(at), err)
	}
	if int64(len(text)) > most {
		return nil, nil, fmt.Errorf("asking %s: its answer has more than %d bytes", shown(at), most)
	}
	return text, resp.Header, nil
}

// lifetime reads for how long an answer holds (RFC 9111, section 5.2.2.1).
func lifetime(h http.Header) time.Duration {
	for _, directive := range strings.Split(strings.Join(h.Values("Cache-Control"), ","), ",") {
		var seconds int64
		if _, err := fmt.Sscanf(strings.ToLower(strings.TrimSpace(directive)), "max-age=%d", &seconds); err == nil && seconds > 0 && seconds < 1<<31 {
			return time.Duration(seconds) * time.Second
		}
	}
	return 0
}

// Step names what of the asking has failed, as the action of an Event: Events of one object that differ in their text alone are counted as one, with the text of the
// first (client-go, tools/events), so that a server that is there and answers with an error would still be said to refuse connections.
// Not the text itself tells them apart, as kubeevent.Apart would have it: the server writes a part of it, and could have as many Events made as it likes.
func Step(err error) string {
	var name *net.DNSError
	var network *net.OpError
	switch {
	case errors.As(err, &name):
		return "Resolve"
	case errors.As(err, &network) && network.Op == "dial":
		return "Connect"
	case errors.Is(err, context.DeadlineExceeded):
		return "Wait"
	case errors.Is(err, errAnswer):
		return "Ask"
	}
	return "Read"
}

var errAnswer = errors.New("it answers")

const maxShown = 200

// shown is a URL as messages have it: without its query, which may hold secrets.
func shown(at string) string {
	at, _, _ = strings.Cut(at, "?")
	return cut(at)
}

func cut(s string) string {
	if s = strings.ToValidUTF8(s, "\uFFFD"); len(s) > maxShown {
		s = strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	return s
}
