package authz

import "testing"

// A request principal is taken apart at its last slash, but for tokens of meshes, whose subjects are SPIFFE IDs.
func TestRequestPrincipalIsAnIssuerAndASubject(t *testing.T) {
	const mesh, id = "spiffe://cluster.local", "spiffe://cluster.local/ns/finance/sa/payroll"
	for value, tokens := range map[string]map[[2]string]bool{
		"https://issuer.example/a/alice": {{"https://issuer.example/a", "alice"}: true, {"https://issuer.example", "a/alice"}: false},
		mesh + "/" + id:                  {{mesh, id}: true, {mesh + "/spiffe://cluster.local/ns/finance/sa", "payroll"}: false, {mesh, id + "2"}: false},
		mesh + "/*":                      {{mesh, id}: true, {"spiffe://other", id}: false},
		"*/" + id:                        {{mesh, id}: true, {"https://issuer.example", id}: true, {mesh, "payroll"}: false},
		mesh + "/spiffe://cluster.local/ns/finance/*": {{mesh, id}: true, {mesh, "spiffe://cluster.local/ns/shop/sa/web"}: false},
	} {
		matches, err := parseRequestPrincipal(value)
		if err != nil {
			t.Errorf("%s: %v", value, err)
			continue
		}
		holds := anyPrincipal(matches)
		for token, want := range tokens {
			if got := holds(&seen{Request: Request{Claims: map[string]any{"iss": token[0], "sub": token[1]}}}); got != want {
				t.Errorf("%s matches %v: %v", value, token, got)
			}
		}
	}
}
