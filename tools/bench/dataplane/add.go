package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulwark-mesh/bulwark/tools/bench/stage"
	"github.com/bulwark-mesh/bulwark/tools/bench/tokens"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
)

// addition is policies that the server has besides, so that what they cost can be seen: Pilot is asked anew, with them.
type addition struct {
	name, what string
	without    string // the addition to which it adds one thing; empty: to Bulwark's configuration as it is
	token      jose.SignatureAlgorithm
	policy     func(tokens.Issuer) policy // nil: none
	refused    string                     // how an answer to what the policy forbids begins; empty: nothing is forbidden
	forbidden  func(*traffic.Target)
}

// policy is an object of the mesh's configuration.
type policy struct {
	kind string
	spec map[string]any
}

const addPrefix = whole + " with "

var additions = []addition{
	{name: "rs256-token", what: "requests with a token (RS256) of which no policy knows", token: jose.RS256},
	{name: "rs256", what: "the same, and a RequestAuthentication that verifies it (RSA of 2048 bits)", without: "rs256-token", token: jose.RS256, policy: verifies, refused: "answer 401", forbidden: forged},
	{name: "es256-token", what: "requests with a token (ES256) of which no policy knows", token: jose.ES256},
	{name: "es256", what: "the same, and a RequestAuthentication that verifies it (ECDSA, P-256)", without: "es256-token", token: jose.ES256, policy: verifies, refused: "answer 401", forbidden: forged},
	{name: "custom-elsewhere", what: "an external authorizer that is asked about another path", policy: asks("/elsewhere/*")},
	{name: "custom", what: "an external authorizer (gRPC, beside the server) that is asked about each request", policy: asks("/accounts/*"), refused: "answer 403", forbidden: asksInVain},
}

// providers are what Pilot is told of external authorizers.
func providers() string {
	return fmt.Sprintf(`--extension-providers=[{"name":%q,"envoyExtAuthzGrpc":{"service":"%s.%s.svc.cluster.local","port":%d,"timeout":"5s"}}]`, stage.Provider, stage.Authorizer, stage.Namespace, traffic.AuthorizerPort)
}

func asks(path string) func(tokens.Issuer) policy {
	return func(tokens.Issuer) policy {
		return policy{"AuthorizationPolicy", map[string]any{"action": "CUSTOM", "provider": map[string]any{"name": stage.Provider},
			"rules": []any{map[string]any{"to": []any{map[string]any{"operation": map[string]any{"paths": []any{path}}}}}}}}
	}
}

func verifies(i tokens.Issuer) policy {
	return policy{"RequestAuthentication", map[string]any{"jwtRules": []any{map[string]any{"issuer": i.Name, "jwks": i.Keys}}}}
}

// forged spoils the token's signature: its first character, as the last has bits that nobody reads.
func forged(t *traffic.Target) {
	at := strings.LastIndex(t.Token, ".") + 1
	other := "A"
	if t.Token[at:at+1] == other {
		other = "B"
	}
	t.Token = t.Token[:at] + other + t.Token[at+1:]
}

func asksInVain(t *traffic.Target) { t.Path += traffic.Refused }

// Additions say what may be added, a line each.
func Additions() string {
	var out strings.Builder
	for _, a := range additions {
		fmt.Fprintf(&out, "  %-20s %s\n", a.name, a.what)
	}
	return out.String()
}

// added are additions by their names, each behind what it is compared with.
func added(names []string) (out []addition, err error) {
	var add func(name string) error
	add = func(name string) error {
		i := slices.IndexFunc(additions, func(a addition) bool { return a.name == name })
		if i < 0 {
			return fmt.Errorf("there is no addition %q; these are:\n%s", name, Additions())
		}
		if slices.ContainsFunc(out, func(a addition) bool { return a.name == name }) {
			return nil
		}
		if before := additions[i].without; before != "" {
			if err := add(before); err != nil {
				return err
			}
		}
		out = append(out, additions[i])
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// addend is an addition with the configuration that it makes.
type addend struct {
	addition
	issuer tokens.Issuer
	config map[string]resources
}

// extend captures the configuration with each addition.
func (s *scene) extend(ctx context.Context, st *stage.Stage, capture func(context.Context) (map[string]resources, error)) error {
	list, err := added(s.Add)
	if err != nil {
		return err
	}
	issuers := map[jose.SignatureAlgorithm]tokens.Issuer{}
	for _, a := range list {
		one := addend{addition: a}
		if a.token != "" {
			if _, made := issuers[a.token]; !made {
				if issuers[a.token], err = tokens.New(a.token); err != nil {
					return err
				}
			}
			one.issuer = issuers[a.token]
		}
		remove := func(context.Context) error { return nil }
		if a.policy != nil {
			p := a.policy(one.issuer)
			if remove, err = st.ForServer(ctx, p.kind, a.name, p.spec); err != nil {
				return err
			}
		}
		one.config, err = capture(ctx)
		if err := errors.Join(err, remove(ctx)); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		s.addends = append(s.addends, one)
	}
	return nil
}

// proves returns an error unless what the addition forbids is refused, so that nothing is measured that does not happen.
func (a addition) proves(ctx context.Context, self string, v *variant) error {
	if a.refused == "" {
		return nil
	}
	forbidden := *v
	a.forbidden(&forbidden.target)
	_, err := forbidden.load(ctx, self, traffic.Plan{Kind: traffic.HTTP1, Connections: 1, Duration: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), a.refused) {
		return fmt.Errorf("%s: what it forbids is not refused by %s, but: %w", v.name, a.refused, err)
	}
	return nil
}
