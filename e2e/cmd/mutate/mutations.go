package main

// mutation switches off the protection behind a claim.
type mutation struct {
	claim int
	what  string
	test  string // that must fail
	edits []edit
}

// edit replaces the one place in a file where old stands.
type edit struct{ file, old, new string }

var mutations = []mutation{
	{1, "Secrets are not made", "TestEveryServiceAccountHasItsIdentity", []edit{
		{"citadel/internal/secrets/sync.go", "	ctx, cancel := context.WithTimeout(ctx, writeTimeout)\n	defer cancel()\n	sa, err :=", "	if k.Name == \"newcomer\" {\n		return time.Time{}, nil\n	}\n	ctx, cancel := context.WithTimeout(ctx, writeTimeout)\n	defer cancel()\n	sa, err :="}}},
	{2, "policies do not reach the proxies", "TestOnlyTheAuditorMayReadAccounts", []edit{
		{"pilot/internal/translate/authorization.go", "enforced, shadow := rules(policies, action, trustDomain)", "enforced, shadow := rules(nil, action, trustDomain)"}}},
	{3, "the proxies speak plaintext", "TestTheWireIsTLS13FromBothSides", []edit{
		{"pilot/internal/translate/cluster.go", "if p.Mutual {", "if false {"},
		{"pilot/internal/translate/inbound.go", "	var out []*listener.FilterChain\n	if p.Mode != authz.Disable {", "	var out []*listener.FilterChain\n	p.Mode = authz.Disable\n	if p.Mode != authz.Disable {"},
		{"pilot/internal/translate/authorization.go", "enforced, shadow := rules(policies, action, trustDomain)", "enforced, shadow := rules(nil, action, trustDomain)"}}},
	{4, "STRICT takes plaintext, too", "TestStrangersAreRefusedUnderStrict", []edit{
		{"pilot/internal/translate/inbound.go", "	switch p.Mode {\n	case authz.Strict:", "	p.Mode = authz.Permissive\n	switch p.Mode {\n	case authz.Strict:"}}},
	{5, "any mesh identity may serve any name", "TestImpostorBehindServiceAddressIsRefused", []edit{
		{"pilot/internal/translate/tls.go", "	if len(sans) == 0 {\n		sans = append(sans, exact(nobody))", "	if sans = []*matcher.StringMatcher{prefix(\"spiffe://\")}; len(sans) == 0 {\n		sans = append(sans, exact(nobody))"}}},
	{6, "certificates are not renewed", "TestCertificatesRotateWithoutAFailedRequest", []edit{
		{"pkg/svid/rotator.go", "if until := r.untilDue(); until > 0 {\n			wait = min(until, recheck)", "if until := r.untilDue(); until > 0 || r.current != nil {\n			wait = recheck"}}},
	{7, "changed policies are not pushed", "TestChangedPolicyIsEnforced", []edit{
		{"pilot/internal/push/store.go", "		s.renew(key{deltaxds.ExtensionConfigType, sc, n}, d)", "		_ = n"}}},
	{8, "only denials are audited", "TestAuditTrailHasEveryDecisionAlsoWhenMixerWasAway", []edit{
		{"pilot/internal/translate/inbound.go", "either(audited(), when(deniedRequest))", "when(deniedRequest)"}}},
	{8, "agents do not keep what Mixer has not taken", "TestAuditTrailHasEveryDecisionAlsoWhenMixerWasAway", []edit{
		{"pkg/spool/sender.go", "next: s.Spool.firstUnacked()}}", "next: s.Spool.firstUnacked() + s.Spool.Stats().Unacked}}"}}},
}
