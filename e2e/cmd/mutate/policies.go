package main

// policies are mutations of what a policy's rows of the semantics say.
var policies = []mutation{
	{20, "the server name of TLS is not looked at", "pilot/internal/featuretest.TestGolden/values", []edit{
		{"pilot/internal/rbac/policies.go", "return &rbac.Permission{Rule: &rbac.Permission_RequestedServerName{RequestedServerName: m}}", "return never()"}}},
	{20, "a workload's UNSET is not its namespace's mode", "pilot/internal/featuretest.TestGolden/modes", []edit{
		{"pkg/authz/peer.go", "		if p != nil && p.Mode != \"\" {\n", "		if p != nil {\n"}}},
	{20, "a policy for one Service holds for all workloads of its namespace", "pilot/internal/featuretest.TestGolden/scope", []edit{
		{"pilot/internal/compile/workload.go", "p.InScope(set.RootNamespace, c.Namespace, c.Labels) && targeted(snap, p.Namespace, p.Services, c.Namespace, c.Labels)", "p.InScope(set.RootNamespace, c.Namespace, c.Labels)"}}},
	{20, "a client in plaintext that waits for its server waits for a verdict", "pilot/internal/translate.TestStrangersAreGreetedWherePoliciesCanAdmitThem", []edit{
		{"pilot/internal/translate/match.go", "if m.verdict && !greetsStrangers(m.w, p, m.identity) {", "if m.verdict {"}}},
	{20, "who has no identity, and cannot be admitted, is greeted", "pilot/internal/translate.TestStrangersAreGreetedWherePoliciesCanAdmitThem", []edit{
		{"pilot/internal/translate/match.go", " && authz.AdmitsStrangers(w.Policies, p.Number)\n", "\n"}}},
	{20, "a listener does not follow policies that admit whoever has no identity", "pilot/internal/translate.TestSameInboundListenerSaysWhatMakingBothWould", []edit{
		{"pilot/internal/translate/inbound.go", " || greetsStrangers(a, p, identity) != greetsStrangers(b, p, identity) {", " {"}}},
}
