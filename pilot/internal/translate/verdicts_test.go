package translate_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	data "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	otel "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	otlp "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// connection is one that is not HTTP, by the addresses of its two ends.
type connection struct{ from, to string }

// verdict is what a proxy has logged of a connection.
type verdict struct {
	rule, asked     string // asked is the rule by which an external authorizer was asked
	denied, audited bool
	trial           trial
	refused         bool // by the handshake, which takes nobody whom no policy admits where the server may speak first
}

// trial is what the filters have found of policies that are tried out: the rules of each action, and the verdict of those that admit.
type trial struct{ deny, allow, verdict string }

func trialOf(deny, allow, verdict string) trial {
	return trial{strings.TrimPrefix(deny, "-"), strings.TrimPrefix(allow, "-"), verdict}
}

// with is what would have been decided if they were enforced, too, of what was decided without: as the agent reads it.
func (t trial) with(d authz.Decision) (allowed bool, rule string) {
	switch {
	case d.Allowed && t.deny != "":
		return false, t.deny
	case d.Allowed && t.verdict == "denied":
		return false, ""
	case !d.Allowed && d.Policy == "" && t.deny == "" && t.allow != "":
		return true, t.allow
	}
	return d.Allowed, d.Policy
}

// verdicts are those of all connections that have ended, as proxies log them for the audit trail.
type verdicts struct {
	mu  sync.Mutex
	all map[connection][]verdict
	new chan struct{} // closed when one comes
}

func newVerdicts() *verdicts {
	return &verdicts{all: map[connection][]verdict{}, new: make(chan struct{})}
}

func (v *verdicts) keep(e *logs.LogRecord) {
	text := map[string]string{}
	for _, a := range e.GetAttributes() {
		text[a.GetKey()] = a.GetValue().GetStringValue()
	}
	var of verdict
	if of.rule, of.denied = deniedBy(text["termination_details"]); !of.denied && text["bulwark.allow_policy"] != "-" {
		of.rule = text["bulwark.allow_policy"]
	}
	of.trial = trialOf(text["bulwark.trial_deny_policy"], text["bulwark.trial_allow_policy"], text["bulwark.trial_allow"])
	of.asked = strings.TrimPrefix(text["asked"], "-")
	of.audited, of.refused = text["audited"] == "true", text["downstream_failure"] != "" && text["downstream_failure"] != "-"
	v.mu.Lock()
	defer v.mu.Unlock()
	c := connection{text["source_address"], text["local_address"]}
	v.all[c] = append(v.all[c], of)
	close(v.new)
	v.new = make(chan struct{})
}

// of waits for the verdict about a connection, and forgets it.
func (v *verdicts) of(t *testing.T, c connection) (verdict, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		v.mu.Lock()
		all, news := v.all[c], v.new
		if len(all) > 0 {
			v.all[c] = all[1:]
		}
		v.mu.Unlock()
		if len(all) > 0 {
			return all[0], nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return verdict{}, fmt.Errorf("nothing is logged of the connection from %s to %s", c.from, c.to)
		}
	}
}

// tellVerdicts has a chain for what is not HTTP log each connection's end, as it logs those that are audited.
func tellVerdicts(t *testing.T, c *listener.FilterChain) {
	t.Helper()
	audit := telemetry.InboundConnections(c.GetTransportSocket() != nil)[0]
	audit.Filter = &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_LogTypeFilter{
		LogTypeFilter: &accesslog.LogTypeFilter{Types: []data.AccessLogType{data.AccessLogType_TcpConnectionEnd}}}}
	repack(t, audit.GetTypedConfig(), func(m any) {
		config := m.(*otel.OpenTelemetryAccessLogConfig)
		for key, of := range map[string]string{"audited": "envoy.common:access_log_hint", "asked": "envoy.filters.network.rbac:" + rbac.AskedKey} {
			config.Attributes.Values = append(config.Attributes.Values, &otlp.KeyValue{Key: key, Value: &otlp.AnyValue{Value: &otlp.AnyValue_StringValue{StringValue: "%DYNAMIC_METADATA(" + of + ")%"}}})
		}
	})
	repack(t, last(c).GetTypedConfig(), func(m any) { m.(*tcpproxy.TcpProxy).AccessLog = []*accesslog.AccessLog{audit} })
}

// hearsKnock connects as a client, says something, and reports whether the application, which repeats what it hears, has heard it.
func hearsKnock(t *testing.T, by caller, to netip.AddrPort, clients map[spiffe.ID]envoytest.Leaf) (connection, bool) {
	t.Helper()
	conn := by.dial(t, to, clients)
	defer conn.Close()
	const word = "knock knock"
	heard := make([]byte, len(word))
	_, err := io.WriteString(conn, word)
	if err == nil {
		_, err = io.ReadFull(conn, heard)
	}
	return connection{conn.LocalAddr().String(), to.String()}, err == nil && string(heard) == word
}
