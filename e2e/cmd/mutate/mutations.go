package main

import "slices"

// mutation switches off the protection behind a claim. Those from 16 on are of what else must not happen.
type mutation struct {
	claim int
	what  string
	test  string // that must fail; a unit test has its package before it, as "pkg/authz.TestX"
	edits []edit
}

// edit replaces the one place in a file where old stands.
type edit struct{ file, old, new string }

var mutations = slices.Concat(claims, outside, policies)

var claims = []mutation{
	{1, "Secrets are not made", "TestEveryServiceAccountHasItsIdentity", []edit{
		{"citadel/internal/secrets/sync.go", "	ctx, cancel := context.WithTimeout(ctx, writeTimeout)\n	defer cancel()\n	sa, err :=", "	if len(k.Name) > 9 && k.Name[:9] == \"newcomer-\" {\n		return time.Time{}, nil\n	}\n	ctx, cancel := context.WithTimeout(ctx, writeTimeout)\n	defer cancel()\n	sa, err :="}}},
	{2, "policies do not reach the proxies", "TestOnlyTheAuditorMayReadAccounts", []edit{
		{"pilot/internal/rbac/policies.go", "enforced, shadow = rules(rendered, action)", "enforced, shadow = rules(nil, action)"}}},
	{3, "the proxies speak plaintext", "TestTheWireIsTLS13FromBothSides", []edit{
		{"pilot/internal/translate/cluster.go", "case p.Mutual:", "case false:"},
		{"pilot/internal/compile/workload.go", "p.Mode = modes.Mode(number)", "p.Mode = authz.Disable"},
		{"pilot/internal/rbac/policies.go", "enforced, shadow = rules(rendered, action)", "enforced, shadow = rules(nil, action)"}}},
	{4, "STRICT takes plaintext, too", "TestStrangersAreRefusedUnderStrict", []edit{
		{"pilot/internal/compile/workload.go", "p.Mode = modes.Mode(number)", "p.Mode = authz.Permissive"}}},
	{5, "any mesh identity may serve any name", "TestImpostorBehindServiceAddressIsRefused", []edit{
		{"pilot/internal/handshake/tls.go", "	if len(sans) == 0 {\n		sans = append(sans, envoy.Exact(nobody))", "	if sans = []*matcher.StringMatcher{envoy.Prefix(\"spiffe://\")}; len(sans) == 0 {\n		sans = append(sans, envoy.Exact(nobody))"}}},
	{6, "certificates are not renewed", "TestCertificatesRotateWithoutAFailedRequest", []edit{
		{"pkg/svid/rotator.go", "func (r *Rotator) next() time.Time {\n", "func (r *Rotator) next() time.Time {\n	if r.current != nil {\n		return r.now().Add(recheck)\n	}\n"}}},
	{7, "changed policies are not pushed", "TestChangedPolicyIsEnforced", []edit{
		{"pilot/internal/catalog/authorization.go", "			if !same {", "			if false && !same {"}}},
	{8, "only denials are audited", "TestAuditTrailHasEveryDecisionAlsoWhenMixerWasAway", []edit{
		{"pilot/internal/telemetry/telemetry.go", "either(audited(), triedOut(httpPolicies), deniedByAuthorizer(), deniedByPolicy())", "either(deniedByAuthorizer(), deniedByPolicy())"}}},
	{8, "agents do not keep what Mixer has not taken", "TestAuditTrailHasEveryDecisionAlsoWhenMixerWasAway", []edit{
		{"pkg/spool/reader.go", "first := s.firstUnacked()\n", "first := s.firstUnacked() + s.Stats().Unacked\n"}}},
	{9, "an agent may ask for the pods of other nodes", "TestIdentity/NobodyGetsTheIdentityOfAnother", []edit{
		{"citadel/internal/issue/authorize.go", "case pod.NodeName != agent.NodeName:", "case false:"}}},
	{9, "every workload may watch as a component", "TestIdentity/NobodyGetsTheIdentityOfAnother", []edit{
		{"citadel/internal/holdings/holdings.go", "case id.TrustDomain != s.trustDomain || id.Namespace != mesh.Namespace || component == \"\":", "case id.TrustDomain != s.trustDomain:"}}},
	{9, "a proxy's socket is open to every user", "TestIdentity/NobodyReachesTheSocketOfAnother", []edit{
		{"agent/internal/pods/socket.go", "	if everyone {\n", "	if everyone || mode != 0 {\n"}}},
	{10, "Pilot does not know revocations", "TestIdentity/RevokedIsDeniedAtOnceAndNotRenewed", []edit{
		{"pilot/internal/rbac/revoked.go", "	if len(list) == 0 {\n", "	if len(list) >= 0 {\n"}}},
	{10, "Citadel does not know revocations", "TestIdentity/RevokedIsDeniedAtOnceAndNotRenewed", []edit{
		{"citadel/internal/issue/service.go", "s.Denied(id.String(), who.Serial, who.PodUID); denied {", "s.Denied(id.String(), who.Serial, who.PodUID); denied && false {"}}},
	{11, "everyone may read a key in a file", "TestIdentity/FilesArePrivateAndChangeInOneStep", []edit{
		{"agent/internal/files/writer.go", "fs.FileMode(w.spec.Mode)", "fs.FileMode(w.spec.Mode | 0o444)"}}},
	{11, "proxies do not have their certificates from Secrets", "TestIdentity/SecretsServeProxiesAndRotate", []edit{
		{"pilot/internal/registry/pod.go", "		out.Delivery = delivery.BySecret\n", ""}}},
	{12, "a root rotation waits for nobody", "TestRootRotatesWithoutAFailedRequest", []edit{
		{"citadel/internal/rotate/waiting.go", "(len(waits) > 0 && !c.Rotation.Forced)", "(len(waits) > 0 && !c.Rotation.Forced && false)"}}},
	{13, "tokens are reviewed by the API server alone, and certificates do not renew themselves", "TestCertificatesAreRenewedWhileTheAPIServerIsAway", []edit{
		{"citadel/internal/issue/token.go", "if strings.Count(token, \".\") != 2 {", "if strings.Count(token, \".\") != 3 {"},
		{"pkg/svid/request.go", "	return byCertificate()\n", "	return none, refused\n"}}},
	{14, "an agent keeps no tokens for the next one", "TestAgentKilledOrReplacedIsNotNoticedByItsPods", []edit{
		{"agent/internal/pods/tokens.go", "	if len(validation.IsDNS1123Label(uid)) > 0 {\n", "	if len(uid) > 0 {\n		return nil\n	}\n	if len(validation.IsDNS1123Label(uid)) > 0 {\n"}}},
	{14, "the token of a pod stays on its node", "TestPodThatGoesLeavesNothingOnItsNode", []edit{
		{"agent/internal/pods/tokens.go", "t.root.Remove(uid + tokenSuffix)", "t.root.Chmod(uid+tokenSuffix, 0o600)"}}},
	{15, "the Lease of a dead Citadel is waited for", "TestAnotherCitadelLeadsWithinFiveSeconds", []edit{
		{"citadel/internal/run/lease.go", "leaseDuration = 3 * time.Second", "leaseDuration = 15 * time.Second"}}},
	{16, "that a name does not exist is said when nothing else is on its way", everyWorld, []edit{
		{session, "			sub.said[name] = nothing\n			resp.RemovedResources = append(resp.RemovedResources, name)", "			sub.gone[name], sub.since = true, now"},
		{session, "	return slices.ContainsFunc(referrers[url], func(by string) bool {\n		sub := s.types[by]\n		return sub != nil && len(sub.inFlight)+len(sub.unsaid)+len(sub.again) > 0",
			"	return slices.ContainsFunc(order, func(by string) bool {\n		sub := s.types[by]\n		return sub != nil && len(sub.inFlight) > 0"}}},
	{16, "endpoints wait for the answer about clusters", everyWorld, []edit{
		{session, "(url == ListenerType || url == RouteType) && s.clustersComeFirst(now)", "url != ClusterType && s.unanswered(ClusterType, now)"}}},
	{16, "a listener does not wait for its clusters", "pkg/deltaxds.TestNoListenerIsAheadOfItsClusters", []edit{
		{session, "(url == ListenerType || url == RouteType) && s.clustersComeFirst(now)", "false"}}},
	{16, "a proxy that returns may be sent a listener before it asks for clusters", "pkg/deltaxds.TestNoListenerIsAheadOfItsClusters", []edit{
		{session, "return now.Sub(s.began) < Patience", "return false"}}},
	{16, "a proxy that returns loses clusters before its listeners are known", "pkg/deltaxds.TestNoListenerIsAheadOfItsClusters", []edit{
		{session, "s.returns && s.types[ListenerType] == nil", "false"}}},
	{16, "the endpoints of a changed cluster are not sent again", everyWorld, []edit{
		{session, "	if endpoints != nil && endpoints.names[cluster] {", "	if false && endpoints.names[cluster] {"}}},
	{16, "a proxy that reconnects is believed to have the versions that it names", everyWorld, []edit{
		{session, "	for name := range req.GetInitialResourceVersions() {\n		sub.said[name] = unknown", "	for name, version := range req.GetInitialResourceVersions() {\n		sub.said[name] = version"}}},
	{16, "what is refused together is not told apart", everyWorld, []edit{
		{"pkg/deltaxds/subscription.go", "		s.again = append(s.again, names[:n/2], names[n/2:])", ""}}},
	{16, "an answer is waited for as long as it takes", "pkg/deltaxds.TestNoAnswerIsWaitedForLongerThanPatience", []edit{
		{session, "len(sub.inFlight) > 0 && now.Sub(sub.inFlight[len(sub.inFlight)-1].at) < Patience", "len(sub.inFlight) > 0"}}},
	{16, "the agent says that a proxy that has stalled has everything", "pkg/nodexds.TestProxyThatHangsIsNeverSettledAndHoldsUpNobody", []edit{
		{nodexds + "dialogue.go", "		st.Pending = true\n", "		st.Pending = false\n"}}},
	{16, "what the agent has received counts as taken by proxies", "pkg/nodexds.TestProxiesNodeAndPilotAgreeInEveryWorld", []edit{
		{nodexds + "session.go", "	s.asOf = max(s.asOf, min(r.GetAsOf(), s.number))\n", "	s.asOf = s.received\n"}}},
	{16, "a proxy that does not answer is not told of", "pilot/internal/push.TestProxyThatDoesNotAnswerIsReportedAndItsStreamEnds", []edit{
		{"pilot/internal/push/report.go", "stalled := said.GetStalled(); stalled != nil {", "stalled := said.GetStalled(); false {"}}},
	{16, "an agent that takes nothing is waited for", "pilot/internal/push.TestAgentThatTakesNothingIsReportedAndHoldsUpNobody", []edit{
		{"pilot/internal/push/server.go", "			if !due.IsZero() && ", "			if false && "}}},
	{17, "a pod behind a headless service is passed through to", "TestAddressDecidesHowAWorkloadIsReached", []edit{
		{"pilot/internal/compile/frontend.go", "	if f.Pod != nil && f.Pod.Plain {", "	if f.Pod != nil {"}}},
	{17, "whoever writes an address into a slice says what is spoken there", "pilot/internal/compile.TestFrontendIsWhoseTheAddressIs", []edit{
		{"pilot/internal/compile/frontend.go", "p != nil && !p.HostNetwork && p.Namespace == s.Namespace", "p != nil && !p.HostNetwork"}}},
	{17, "one of two services says what both ports speak", "pilot/internal/compile.TestPortOfTwoServicesIsWhatBothSay", []edit{
		{"pilot/internal/compile/workload.go", "		p.Protocol = protocol.Auto\n", ""}}},
	{17, "what a port refuses is left to what the workload takes", "pilot/internal/translate.TestPortTakesWhatItsModeSays", []edit{
		{"pilot/internal/translate/match.go", `"tls": m.tls(p), "raw_buffer": plaintext}, takenBy(refused)))`, `"tls": m.tls(p)}, nil))`},
		{"pilot/internal/translate/match.go", "	plaintext := takenBy(refused)\n	if p.Mode != authz.Strict {\n		plaintext = m.plaintext(p)\n	}\n", ""}}},
	{18, "a filter chain knows the workload's ports", "TestOpenConnectionsOutliveWhatForbidsThemNothing", []edit{
		{"pilot/internal/translate/inbound.go", `connectionManager("inbound", `, `connectionManager(fmt.Sprint("inbound", len(c.w.Ports)), `},
		{"pilot/internal/translate/inbound.go", "import (\n", "import (\n	\"fmt\"\n"}}},
	{18, "a filter chain knows whether there are policies", "pilot/internal/translate.TestInboundChainsAreTheSameWhateverServicesPoliciesAndModesSay", []edit{
		{"pilot/internal/translate/inbound.go", `c.tls(tlsTCP+asks, c.tcp(true, afterHandshake))`, `c.tls(tlsTCP+asks, c.tcp(enforced(w.Policies), afterHandshake))`}}},
	{18, "plaintext that was open when the mode changed goes on asking", "pilot/internal/translate.TestPlaintextIsDeniedBeforeTheListenerRefusesIt", []edit{
		{"pilot/internal/translate/authorization.go", "filter.Rules = rbac.With(filter.GetRules(), rbac.PlaintextRule, rbac.StrictPorts(w))", "_ = rbac.PlaintextRule"}}},
	{19, "what an unproven certificate says is taken for proven", "agent/internal/als.TestOnlyAHandshakeProvesAnIdentity", []edit{
		{"agent/internal/als/convert.go", "	if err != nil || !r.handshaken() {\n", "	if err != nil {\n"}}},
	{19, "a client that leaves in the middle of a handshake has proven its name", "agent/internal/als.TestOnlyAHandshakeProvesAnIdentity", []edit{
		{"agent/internal/als/convert.go", " || number(r.tag(\"received\")) > 0", " || number(r.tag(\"received\")) >= 0"}}},
	{19, "an impostor's name is shown as the server's", "agent/internal/als.TestAnUnprovenNameIsAClaim", []edit{
		{"agent/internal/als/convert.go", "return r.get(\"upstream_failure\") == \"\"", "return true"}}},
	{19, "an agent may tell of operators' acts", "mixer/internal/ingest.TestPeersSendOnlyWhatIsTheirs", []edit{
		{"mixer/internal/ingest/rules.go", "		case telemetryv1.Kind_KIND_REQUEST:\n", "		case telemetryv1.Kind_KIND_REQUEST, telemetryv1.Kind_KIND_ADMIN:\n"}}},
	{19, "an agent may speak for every node", "mixer/internal/ingest.TestPeersSendOnlyWhatIsTheirs", []edit{
		{"mixer/internal/ingest/rules.go", "		if observer.GetNode() != s.node {\n", "		if false {\n"}}},
	{19, "reports of another node's counters are taken", "mixer/internal/ingest.TestPeersSendOnlyWhatIsTheirs", []edit{
		{"mixer/internal/ingest/rules.go", "	if r.GetNode() != s.node {\n", "	if false {\n"}}},
	{19, "a spool is whoever's knows its name", "mixer/internal/ingest.TestAnAgentCannotSilenceAnotherNode", []edit{
		{"mixer/internal/audit/trail.go", "	case exists && !known.of(sender):\n", "	case false:\n"}}},
	{19, "sequences may jump", "mixer/internal/audit.TestASpoolIsItsSendersAlsoAfterARestart", []edit{
		{"mixer/internal/audit/trail.go", "!explained(e, missing) {", "!explained(e, missing) && false {"}}},
	{19, "an event that is too long is written", "mixer/internal/audit.TestAnEventThatIsTooLongDoesNotSpoilTheTrail", []edit{
		{"mixer/internal/audit/trail.go", "len(entries[i]) > maxEntry {", "false {"}}},
	{19, "tables show text as it came", "meshctl/internal/printer.TestNothingThatStrangersChoseLeavesItsPlace", []edit{
		{"meshctl/internal/printer/printer.go", "		quoted[i] = printable.Text(c)\n	}\n	_, _ = io", "		quoted[i] = c\n	}\n	_, _ = io"}}},
	{19, "overrides of direction pass", "pkg/printable.TestNoTextLeavesItsLineOrMovesACursor", []edit{
		{"pkg/printable/printable.go", "func(r rune) bool { return !unicode.IsPrint(r) }) < 0", "func(r rune) bool { return unicode.IsControl(r) }) < 0"}}},
	{19, "a command prints beside the printer", "meshctl/internal/printer.TestThereIsNoOtherPrinter", []edit{
		{"meshctl/internal/cli/version.go", "a.out.Line(\"meshctl: %s\", version.String())", "cmd.Println(version.String()); _ = cmd.OutOrStdout()"}}},
	{19, "a batch has no bound but the number of its events", "pkg/spool.TestABatchIsNeverTooLongToBeTaken", []edit{
		{"pkg/spool/reader.go", "len(out) < n && size < batchBytes {", "len(out) < n {"}}},
	{19, "damaged records are left out without a word", "pkg/spool.TestWhatIsMissingIsSaidInItsPlace", []edit{
		{"pkg/spool/reader.go", "e.GetSequence() > expected {", "false {"}}},
	{19, "who confirms held removals need not have seen them", "pilot/internal/feed.TestRelistThatEmptiesTheWorldIsHeld", []edit{
		{"pilot/internal/feed/guard.go", "	case seen != len(g.suspects):\n", "	case false:\n"}}},
	{19, "what is missing in one list goes at once", "pilot/internal/feed.TestWhatIsMissingInAListGoesUnlessItIsSeen", []edit{
		{"pilot/internal/feed/feed.go", "f.suspect(registry.Event{", "f.put(registry.Event{"}}},
	{19, "Pilot may read Secrets", "pilot/internal/registry.TestChartGrantsPilotWhatItsKindsNeed", []edit{
		{"manifests/charts/bulwark/templates/pilot.yaml", "resources: [services, pods, nodes, namespaces, limitranges]", "resources: [services, pods, nodes, namespaces, secrets]"}}},
	{20, "a rule without a field is anyone's once the policy has another problem", "pkg/authz.TestRuleWithAProblemFailsClosed", []edit{
		{"pkg/authz/build.go", "	if s != nil && len(c) == 0 && b.count == before {", "	if s != nil && len(c) == 0 && before == 0 {"}}},
	{20, "problems beyond those that are listed do not count", "pkg/authz.TestRuleWithAProblemFailsClosed", []edit{
		{"pkg/authz/build.go", "	b.count++\n	if len(b.problems) < maxProblems {\n", "	if len(b.problems) < maxProblems {\n		b.count++\n"}}},
	{20, "methods are compared, however they are spelt", "pilot/internal/translate.TestMethodInAnotherSpellingIsDenied", []edit{
		{"pkg/authz/attribute.go", "ambiguity(Method, AmbiguousMethodRule, AmbiguousMethod,", "ambiguity(Method, AmbiguousMethodRule, \"^$\","}}},
	{20, "CONNECT is let through where rules look at hosts or headers", "pkg/authz.TestTunnelsAreDeniedWhereARuleLooksAtRequests", []edit{
		{"pkg/authz/attribute.go", "return of == a.Attribute || a.Rule == TunnelRule && attributes[of].http", "return of == a.Attribute"}}},
	{20, "Envoy lets through by CONNECT what the evaluator denies", "pilot/internal/translate.TestEnvoyAndEvaluatorAgree", []edit{
		{"pilot/internal/translate/route.go", "if len(quiet) > 0 && !tunnel {", "if len(quiet) > 0 {"}}},
	{20, "clients say in which form their targets are", "pilot/internal/translate.TestHTTP1ArrivesAsItWasSent", []edit{
		{"pilot/internal/translate/route.go", "overwritten(formHeader, \"%PROTOCOL%%REQ(:SCHEME)%\")", "overwritten(\"x-other\", \"%PROTOCOL%%REQ(:SCHEME)%\")"}}},
	{20, "rules see what a proxy makes of an Upgrade header", "pilot/internal/translate.TestRulesSeeWhatIsOffered", []edit{
		{"pilot/internal/translate/inbound.go", "m := seeingOffers(connectionManager(\"inbound\", append(httpAuthorizationFilters(), openHTTPFilters()...), telemetry.InboundRequests(mutual)))", "m := connectionManager(\"inbound\", append(httpAuthorizationFilters(), openHTTPFilters()...), telemetry.InboundRequests(mutual))"}}},
	{20, "connections may go on in HTTP/2", "pilot/internal/translate.TestHTTP1ArrivesAsItWasSent", []edit{
		{"pilot/internal/translate/http.go", "[]string{\"tls\", \"http\", \"h2\"}", "[]string{\"tls\"}"}}},
	{20, "a flood of requests that are taken back is ended by new connections", "pilot/internal/translate.TestRequestsThatAreTakenBackHarmNobodyElse", []edit{
		{"pilot/internal/translate/bootstrap.go", "overload.premature_reset_total_stream_count", "overload.premature_reset"}}},
	{20, "a flood of requests that are taken back fills a proxy's memory", "pilot/internal/translate.TestRequestsThatAreTakenBackHarmNobodyElse", []edit{
		{"pilot/internal/translate/inbound.go", "envoy.U32(1 << 16)", "envoy.U32(1 << 20)"}}},
	{20, "a client with thousands of streams that ends takes another's along", "pilot/internal/translate.TestStreamsOfOneClientAreNotBoundAndEndNobodyElses", []edit{
		{"pilot/internal/translate/http.go", "envoy.U32(512)", "envoy.U32(1024)"}}},
	{20, "a server that ends takes an application's streams to others along", "pilot/internal/translate.TestStreamsToAServerThatEndsAreAllThatEnds", []edit{
		{"pilot/internal/translate/http.go", "MaxOutboundControlFrames: envoy.U32(1 << 14)", "MaxOutboundControlFrames: envoy.U32(1000)"}}},
	{20, "proxies keep the deadlines of calls", "pilot/internal/translate.TestDeadlinesAreTheirClients", []edit{
		{"pilot/internal/translate/route.go", "		Timeout: envoy.Seconds(0),\n", "		Timeout: envoy.Seconds(0), MaxStreamDuration: &route.RouteAction_MaxStreamDuration{GrpcTimeoutHeaderMax: envoy.Seconds(0)},\n"}}},
	{2, "the proxy waits for the application to close a connection", "pilot/internal/translate.TestProxyLeavesTheApplicationFirst", []edit{
		{"pilot/internal/translate/cluster.go", "const applicationIdle = 1500 * time.Millisecond", "const applicationIdle = time.Hour"}}},
	{2, "connections without a request end after an hour", "pilot/internal/translate.TestNobodyHasToSpeak", []edit{
		{"pilot/internal/translate/http.go", "envoy.U32(maxHeaders), IdleTimeout: envoy.Seconds(0)}", "envoy.U32(maxHeaders)}"}}},
	{20, "a late request is judged as a connection", "pilot/internal/translate.TestUndeclaredPortsTakeWhatComes", []edit{
		{"pilot/internal/translate/match.go", "return p.Protocol == protocol.Auto && enforced(w.Policies)", "return false && enforced(w.Policies)"}}},
	{20, "no server of an undeclared port may speak first", "pilot/internal/translate.TestUndeclaredPortsTakeWhatComes", []edit{
		{"pilot/internal/translate/match.go", "return p.ServerFirst || p.Protocol == protocol.Auto && identity", "return p.ServerFirst"}}},
	{20, "a server greets whom nobody admits", "pilot/internal/translate.TestUndeclaredPortsTakeWhatComes", []edit{
		{"pilot/internal/translate/match.go", "	case mayGreet(p, m.identity) && m.restricted:", "	case p.ServerFirst && m.restricted:"},
		{"pilot/internal/translate/match.go", "	case p.ServerFirst || !m.verdict:", "	case mayGreet(p, m.identity) || !m.verdict:"}}},
	{2, "ports of mode DISABLE are looked at", "pilot/internal/translate.TestPortsWithoutMutualTLSAreForwardedAtOnce", []edit{
		{"pilot/internal/translate/inbound.go", "inspector.FilterDisabled = uninspected(w)", "_, _ = inspector, uninspected(w)"}}},
	{20, "a path with an escape is clear", "pkg/authz.TestClearTextsAreNotAmbiguous", []edit{
		{"pkg/authz/path.go", "const clearPath = `(?:/[a-z", "const clearPath = `(?:/[%a-z"}}},
	{20, "dot segments are not ambiguous", "pkg/authz.TestWhatNormalisationWouldChangeIsAmbiguous", []edit{
		{"pkg/authz/path.go", "`//|\\\\|/\\.\\.?(?:/|$)|`", "`//|\\\\|`"}}},
	{20, "a path with characters that no URI has is not ambiguous", "pilot/internal/translate.TestEnvoyAndEvaluatorAgree", []edit{
		{"pilot/internal/rbac/policies.go", "if a.Alphabet != \"\" {", "if false {"}}},
	{20, "parameters of a segment are not ambiguous", "pilot/internal/translate.TestNoServerServesWhatIsDenied", []edit{
		{"pkg/authz/path.go", "`(?i:;|%3b|%([^0-9a-f]|$)", "`(?i:%([^0-9a-f]|$)"}}},
	{20, "lists within a line of a header are one text", "pilot/internal/translate.TestEveryLineOfAHeaderIsSeen", []edit{
		{"pkg/authz/values.go", "const begin, end = `(?:` + anyBytes + `,)?[ \\t]*`,", "const begin, end = `[ \\t]*`,"}}},
	{20, "a dot after a host is another host", "pilot/internal/translate.TestHostsInOtherSpellingsAreDenied", []edit{
		{"pkg/authz/host.go", "return \"(?i)\" + text + `\\.?(?::[0-9]*)?`", "return \"(?i)\" + text + `(?::[0-9]*)?`"}}},
	{20, "values of policies are patterns", "pilot/internal/translate.TestValuesOfPoliciesAreNoPatterns", []edit{
		{"pkg/authz/path.go", "			sb.WriteString(regexp.QuoteMeta(c))\n", "			sb.WriteString(c)\n"}}},
	{20, "values of policies are as long as their authors like", "pilot/internal/validate.TestHugePolicyIsRefusedAtOnce", []edit{
		{"pkg/authz/values.go", "len(v) > MaxValueLength", "len(v) > 1000*MaxValueLength"}}},
	{33, "an external authorizer is asked by the first rule of a policy alone", "pilot/internal/translate.TestEnvoyAndEvaluatorAgree", []edit{
		{"pilot/internal/rbac/custom.go", "			if !r.Never {\n", "			if !r.Never && r.Index == 0 {\n"}}},
	{20, "which rule lets a connection in is not told", "pilot/internal/translate.TestEnvoyAndEvaluatorAgree", []edit{
		{"pilot/internal/translate/authorization.go", "			filter.ShadowRules, filter.ShadowRulesStatPrefix = filter.Rules, rbac.Prefix(authz.Allow)\n", "			filter.ShadowRulesStatPrefix = rbac.Prefix(authz.Allow)\n"}}},
	{20, "what follows a host does not matter where it admits", "pkg/authz.TestMatchIsWideWhereItDeniesAndNarrowWhereItAdmits", []edit{
		{"pkg/authz/host.go", "	if !wide || m.Kind", "	if m.Kind"}}},
	{20, "an authority may have user information", "pilot/internal/translate.TestAuthorityIsAHostAndMaybeAPort", []edit{
		{"pilot/internal/translate/route.go", "Routes: []*route.Route{badAuthority(&route.RouteMatch{PathSpecifier: ofPaths()}), ", "Routes: []*route.Route{"}}},
	{20, "a filter that has something to say is left out", "pilot/internal/translate.TestOnlyFiltersWithNothingToSayAreLeftOut", []edit{
		{"pilot/internal/rbac/policies.go", "return p.Action == action && !p.Ignored })", "return p.Action == action && !p.Ignored && !p.DryRun })"}}},
	{20, "rules for everyone are not among those for a peer that is named", "pkg/authz.TestPartForAPeerDecidesAsTheWhole", []edit{
		{"pkg/authz/bypeer.go", "			for uri := range out {\n				out[uri] = a.in", "			for uri := range map[string]bool{} {\n				out[uri] = a.in"}}},
	{20, "who is not found by name is asked nothing", "pilot/internal/translate.TestWhoeverIsNotFoundByNameIsAskedEverything", []edit{
		{"pilot/internal/translate/authorization.go", "peers, delegated(all)),", "peers, delegated(&httprbac.RBAC{})),"}}},
	{20, "ambiguous paths are not among the requests that are asked about", "pilot/internal/translate.TestOnlyFiltersWithNothingToSayAreLeftOut", []edit{
		{"pilot/internal/translate/authorization.go", "append(suspicions, of...)", "append(suspicions, of[1:]...)"}}},
	{20, "the first revocation leaves its filter left out", everyChange, []edit{
		{families + "workload.go", "if t.effects.Revocations && anyRevoked(t.was) != anyRevoked(c.snap) {", "if false {"}}},
	{20, "every URI of the trust domain is an identity", "pilot/internal/translate.TestHandshakeTakesNothingButIdentities", []edit{
		{"pilot/internal/handshake/peers.go", "envoy.Pattern(spiffe.Pattern(trustDomains...))", "envoy.Pattern(\"spiffe://\" + spiffe.ID{TrustDomain: trustDomains[0]}.TrustDomain + \"/.*\")"}}},
	{20, "a client says to which cluster its request goes", "pilot/internal/translate.TestClientsDoNotChooseTheCluster", []edit{
		{"pilot/internal/translate/http.go", "core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD", "core.HeaderValueOption_ADD_IF_ABSENT"}}},
	{20, "policies that can never match are taken", "pkg/authz.TestValueThatCanNeverMatchIsRefused", []edit{
		{"pkg/authz/path.go", "	if reason := notNormal(m.Kind, m.Value); reason != \"\" {", "	if reason := notNormal(m.Kind, m.Value); reason != \"\" && false {"}}},
	{20, "the evaluator does not resolve dot segments as proxies do", "pilot/internal/translate.TestPathsAreSeenAsEnvoyDoes", []edit{
		{"pkg/authz/path.go", "path := withoutDotParameters(unescapeSlashes(raw))", "path := unescapeSlashes(raw)"}}},
	{21, "nobody is told that a service's cluster has changed", everyChange, []edit{
		{families + "service.go", "for id := range t.effects.Services {", "for id := range t.effects.Services {\n\t\t\t\tbreak"}}},
	{21, "nobody is told that endpoints have changed", everyChange, []edit{
		{families + "service.go", "for id := range t.effects.Endpoints {", "for id := range t.effects.Endpoints {\n\t\t\t\tbreak"}}},
	{21, "nobody is told that a service's listener has changed", everyChange, []edit{
		{families + "service.go", "for at := range t.effects.Frontends {", "for at := range t.effects.Frontends {\n\t\t\t\tbreak"}}},
	{21, "a class is not told that its inbound listener has changed", everyChange, []edit{
		{families + "workload.go", "if w.was == nil || !translate.SameInboundListener", "if false && w.was == nil && !translate.SameInboundListener"}}},
	{21, "a class is not told that its tables of routes have changed", everyChange, []edit{
		{families + "workload.go", "if w.was == nil || !translate.SameInboundRoutes", "if false && w.was == nil && !translate.SameInboundRoutes"}}},
	{21, "a class is not told that its policies have changed", everyChange, []edit{
		{families + "authorization.go", "			if !same {", "			if false && !same {"}}},
	{21, "nobody is told that revocations have changed", everyChange, []edit{
		{families + "revocations.go", "if !t.effects.Revocations {", "if true || !t.effects.Revocations {"}}},
	{21, "clusters are made anew for those alone whose certificates come from the agent", everyChange, []edit{
		{families + "service.go", "					for _, d := range deliveries {\n						for ns := range ruled", "					for _, d := range deliveries[:1] {\n						for ns := range ruled"}}},
	{21, "a pod of new labels is not told what its new class has", everyChange, []edit{
		{"pilot/internal/push/agent.go", "	s.forget(gone)\n	p.agent.speak(p)\n", "	s.forget(gone)\n"}}},
	{21, "what a service was is forgotten when a pod of it changes, too", "pilot/internal/compile.TestPodAndPortOfAHeadlessServiceGoTogether", []edit{
		{"pilot/internal/compile/effects.go", "range []*registry.Service{snap.Service(id), e.former[id]} {", "range []*registry.Service{snap.Service(id)} {"}}},
	{21, "workloads are not looked at again when a Service selects them", "pilot/internal/compile.TestEffectsNameWhateverDiffers", []edit{
		{"pilot/internal/compile/effects.go", "		e.Classes = append(e.Classes, ClassSelector{s.Namespace, s.Selector})\n", ""}}},
	{21, "endpoints are sent that Envoy does not take", "pilot/internal/featuretest.TestEnvoyTakesEveryWorld", []edit{
		{"pilot/internal/translate/cluster.go", "md, LoadBalancingWeight: envoy.U32(1),", "md, LoadBalancingWeight: envoy.U32(0),"}}},
	{21, "a filter is sent another filter's configuration", "pilot/internal/featuretest.TestEnvoyTakesEveryWorld", []edit{
		{"pilot/internal/translate/revoked.go", "&httprbac.RBAC{Rules: rules, RulesStatPrefix: rbac.Prefix(authz.Deny)}", "&netrbac.RBAC{Rules: rules, StatPrefix: rbac.Prefix(authz.Deny)}"},
		{"pilot/internal/translate/revoked.go", "	rules := rbac.Revoked(set, list)\n", "	rules, _ := rbac.Revoked(set, list), httprbac.RBAC{}\n"}}},
	{22, "everyone has every service", "pilot/internal/featuretest.TestGolden", []edit{
		{families + "reach.go", "	if a.Everyone {\n", "	if a.Members, a.Everyone = nil, true; a.Everyone {\n"}}},
	{22, "a first policy moves no service", everyChange, []edit{
		{families + "catalog.go", "		if c.reach.renew(c, id) {\n", "		if false && c.reach.renew(c, id) {\n"}}},
	{22, "those who may reach a service no longer are not told", everyChange, []edit{
		{families + "catalog.go", "		if !slices.Contains(now, id) {\n			out.Moves = append(out.Moves, id)\n", "		if !slices.Contains(now, id) {\n"}}},
	{22, "those who may reach a service now are not told", everyChange, []edit{
		{families + "catalog.go", "		out.Moves = append(out.Moves, id)\n		c.layers[id].set(r, true)\n", "		c.layers[id].set(r, true)\n"}}},
	{22, "a pod whose Sidecar has changed keeps what it had", everyChange, []edit{
		{families + "catalog.go", "if t.effects.Sidecared(p.Namespace) || ", "if "}}},
	{22, "new ranges of Services' addresses are not told", everyChange, []edit{
		{families + "outbound.go", "if t.effects.Ranges {", "if false && t.effects.Ranges {"}}},
	{22, "a policy is not looked at for who may reach a service", "pilot/internal/compile.TestEffectsNameWhateverDiffers", []edit{
		{"pilot/internal/compile/effects.go", "		if len(s.Selector) > 0 && mayShare(p.Selector, s.Selector) {\n", "		if false && mayShare(p.Selector, s.Selector) {\n"}}},
	{22, "a pod without a proxy keeps nobody in", "pilot/internal/compile.TestAudience", []edit{
		{"pilot/internal/compile/reach.go", "		if !p.Proxied {\n", "		if false && !p.Proxied {\n"}}},
	{22, "a policy that is tried out narrows who may reach a service", "pilot/internal/compile.TestAudience", []edit{
		{"pilot/internal/compile/reach.go", "policy.Action != authz.Allow || policy.DryRun || ", "policy.Action != authz.Allow || "}}},
	{22, "what is out of reach is let through", "pilot/internal/featuretest.TestOutOfReachIsRefused", []edit{
		{"pilot/internal/translate/refusal.go", "	if len(ranges) == 0 {\n", "	if len(ranges) >= 0 {\n"}}},
	{22, "a client that was refused goes on to ask who refuses", "pilot/internal/featuretest.TestOutOfReachIsRefused", []edit{
		{"pilot/internal/translate/refusal.go", "	m.CommonHttpProtocolOptions.MaxRequestsPerConnection = envoy.U32(1)\n", ""}}},
	{22, "a Service that is exported to nobody is known to everybody", "pilot/internal/compile.TestExportToSaysWhichNamespacesKnowAService", []edit{
		{"pilot/internal/compile/visibility.go", "	case slices.Contains(s.ExportTo, \"~\"):\n		return false\n", "	case slices.Contains(s.ExportTo, \"~\"):\n		return true\n"}}},
	{22, "what a Sidecar excludes is known all the same", "pilot/internal/compile.TestHostsOfASidecarNameServices", []edit{
		{"pilot/internal/compile/visibility.go", "			if h.Excludes() {\n", "			if false && h.Excludes() {\n"}}},
	{22, "a field of a Sidecar that is not enforced is taken", "pilot/internal/validate.TestRefusalsNameFieldAndReason", []edit{
		{"pilot/internal/registry/sidecar.go", "		if !slices.Contains(enforced, f.JSONName()) {\n", "		if false && !slices.Contains(enforced, f.JSONName()) {\n"}}},
	{22, "a refusal by the client's proxy is no denial", "agent/internal/als.TestOutOfReachIsDeniedByTheClientsProxy", []edit{
		{"agent/internal/als/convert.go", "	if r.tag(\"out_of_reach\") != \"\" {\n", "	if false && r.tag(\"out_of_reach\") != \"\" {\n"}}},
	{17, "who takes the proxy's own address leaves the pod past it", "pkg/redirect.TestTrafficGoesWhereItShould", []edit{
		{"pkg/redirect/rules.go", "source(netip.PrefixFrom(a, a.BitLen())), toLoopbackDevice(), accept())", "source(netip.PrefixFrom(a, a.BitLen())), accept())"}}},
	{17, "a slice of another family says what is behind an address", "pilot/internal/compile.TestEndpointsAreOfTheFamilyThatIsCalled", []edit{
		{"pilot/internal/compile/service.go", "number == 0 || slice.Family != f {", "number == 0 {"}}},
	{21, "an address that a Service comes to have is not told", everyChange, []edit{
		{families + "service.go", "				for _, f := range ipFamilies {\n					for _, d := range deliveries {", "				for _, f := range ipFamilies[:1] {\n					for _, d := range deliveries {"}}},
	{21, "proxies go on listening in the families that there were", everyChange, []edit{
		{families + "fixed.go", "if !t.effects.Ranges || ipv6(t.was) == ipv6(c.snap) {", "if true || ipv6(t.was) == ipv6(c.snap) {"}}},
	{27, "an application of IPv6 is called from an address that it takes for its own", "pilot/internal/featuretest.TestBothFamiliesAreServedAndProtected", []edit{
		{"pilot/internal/translate/address.go", "Address: source(mesh.InboundSourceIPv6)", "Address: source(\"::1\")"}}},
	{27, "clients of every node have the endpoints of a Service that is local", "pilot/internal/compile.TestNearestEndpointsAreKubeProxys", []edit{
		{"pilot/internal/compile/nearest.go", "	if s.Local {\n		candidates =", "	if false && s.Local {\n		candidates ="}}},
	{27, "an endpoint that is meant for nobody in particular is left out", "pilot/internal/compile.TestNearestEndpointsAreKubeProxys", []edit{
		{"pilot/internal/compile/nearest.go", "		if len(named) == 0 {\n			return nil\n", "		if len(named) == 0 {\n			continue\n"}}},
	{27, "who ends and still serves is not called", "pilot/internal/featuretest.TestGolden", []edit{
		{"pilot/internal/registry/slice.go", "out.Leaving = !out.Ready && serving", "out.Leaving = false && serving"}}},
	{27, "the endpoints of one node are everybody's", "pilot/internal/catalog.TestClientsHaveTheEndpointsOfTheirPlace", []edit{
		{families + "endpoints.go", "		out = append(out, l.at(r.For))\n", "		out = append(out, l)\n"}}},
	{27, "clients do not follow their node to another zone", "pilot/internal/catalog.TestClientsHaveTheEndpointsOfTheirPlace", []edit{
		{families + "catalog.go", "			if t.effects.Nodes[p.Node] {\n", "			if false && t.effects.Nodes[p.Node] {\n"}}},
	{27, "what a node has of a zone stays that of the former one", "pilot/internal/catalog.TestClientsHaveTheEndpointsOfTheirPlace", []edit{
		{families + "service.go", "		out = append(out, endpointsOn(c, t.effects.Nodes)...)\n", ""}}},
	{27, "what a service was spread by stays", everyChange, []edit{
		{families + "endpoints.go", "		if now.Of(p) || was.Of(p) {\n", "		if now.Of(p) {\n"}}},
	{27, "a client that is to stay with its endpoint has any", "pilot/internal/translate.TestAClientStaysWithItsEndpoint", []edit{
		{"pilot/internal/translate/outbound.go", "	if f.Service.Sticky {\n", "	if false && f.Service.Sticky {\n"}}},
	{27, "while Pilot is away, pods of a zone are of no class", "pilot/internal/catalog.TestPodsOfAZoneAreKnownAsTheyWereInjected", []edit{
		{"pilot/internal/compile/workload.go", "	delete(c.Labels, core.LabelTopologyZone)\n", ""}}},
	{27, "a Service that cannot be read is refused", "pilot/internal/validate.TestAuthorsOfServicesAreToldWhatHolds", []edit{
		{"pilot/internal/validate/validate.go", "		if kind.IsAdvised() {\n", "		if false && kind.IsAdvised() {\n"}}},
	{23, "another node's pod is served", "pilot/internal/push.TestAgentReadsNothingOfAnotherNodesPods", []edit{
		{"pilot/internal/push/agent.go", "	case now.Node != p.agent.pod.Node:\n", "	case false:\n"}}},
	{23, "every component is an agent", "pilot/internal/push.TestWhoIsNoAgentIsRefused", []edit{
		{"pilot/internal/push/server.go", " || id.ServiceAccount != mesh.AgentAccount {", " {"}}},
	{23, "another pod of the name is served as the pod", "pilot/internal/push.TestPodWhoseNameIsAnothersHasNothing", []edit{
		{"pilot/internal/push/agent.go", "	case now.UID != p.uid:\n", "	case false:\n"}}},
	{23, "a pod that Pilot has not spoken of has nothing", "pkg/nodexds.TestRestartedAgentTakesNothingAway", []edit{
		{nodexds + "cache.go", "	return nil, c.words[uid] != nil\n", "	return nil, true\n"}}},
	{23, "the agent keeps layers that no pod has", "pkg/nodexds.TestLayerThatNobodyHasIsForgotten", []edit{
		{nodexds + "cache.go", "!c.used[name] })", "false && !c.used[name] })"}}},
	{23, "a returning agent is sent what it has", "pkg/nodexds.TestReturningAgentIsSentWhatDiffers", []edit{
		{nodexds + "session.go", "	case r != nil && r.Version != last:\n", "	case r != nil && (r.Version != last || !h.follows || len(h.changed) == 0):\n"}}},
	{23, "a returning agent keeps what has gone", "pkg/nodexds.TestReturningAgentIsSentWhatDiffers", []edit{
		{nodexds + "session.go", "			if !there[url][name] {\n", "			if false && !there[url][name] {\n"}}},
	{23, "while Pilot is away, a pod has what another service account's has", "pkg/nodexds.TestProxiesStartWhilePilotIsAway", []edit{
		{nodexds + "node.go", "other.account == p.account && ", "other != p && "}}},
	{23, "while Pilot is away, a pod that it has refused is served", "pkg/nodexds.TestProxiesStartWhilePilotIsAway", []edit{
		{nodexds + "node.go", "!n.alone || p.refused || ", "!n.alone || "}}},
	{23, "a layer is compared with what Pilot no longer has", "pkg/nodexds.TestAPodThatPilotHasYetToSpeakOfKeepsItsLayer", []edit{
		{nodexds + "session.go", "				of.follows = false\n", ""}}},
	{23, "a proxy sees half of a change", "pkg/deltaxds.TestClientSeesNoHalfOfAChange", []edit{
		{"pkg/deltaxds/stream.go", "	for _, s := range streams {\n		s.mu.Lock()\n	}\n	for s, news := range change() {", "	all := change()\n	for _, s := range streams {\n		s.mu.Lock()\n	}\n	for s, news := range all {"}}},
	{17, "who asks at the health port chooses the headers", "pilot/inject.TestStrangersChooseNothingOfWhatIsAsked", []edit{
		{script, "    headers:remove(name)\n", ""}}},
	{17, "who asks at the health port may send a body", "pilot/inject.TestStrangersChooseNothingOfWhatIsAsked", []edit{
		{script, "  elseif handle:body() then\n", "  elseif false then\n"}}},
	{17, "who asks at the health port may use any method", "pilot/inject.TestStrangersChooseNothingOfWhatIsAsked", []edit{
		{"pilot/internal/translate/probes.go", "StringMatch: envoy.Exact(method)", "StringMatch: envoy.Pattern(\".*\")"}}},
	{17, "a gRPC probe asks for any service", "pilot/inject.TestStrangersChooseNothingOfWhatIsAsked", []edit{
		{script, "if asked == message(c.name) then", "if asked then"}}},
	{17, "a forged header says where a probe goes", "pilot/inject.TestWithoutTheScriptNobodyIsAsked", []edit{
		{"pilot/internal/translate/probes.go", "early(without(destination)...)", "early(without(\"x-nothing\")...)"}}},
	{24, "redirects are followed to other hosts", "pilot/inject.TestKubeletFindsTheSameWithAndWithoutAProxy", []edit{
		{script, "url.host ~= address or proxy[url.port]", "proxy[url.port]"}}},
	{24, "redirects are followed to the proxy's own ports", "pilot/inject.TestKubeletFindsTheSameWithAndWithoutAProxy", []edit{
		{script, "url.host ~= address or proxy[url.port]", "url.host ~= address"}}},
	{24, "a hook of a port where nothing listens is a success", "pilot/inject.TestKubeletFindsTheSameWithAndWithoutAProxy", []edit{
		{"pilot/internal/translate/probes.go", "failed(\"UF\", ", "failed(\"NR\", "}}},
	{25, "the plugin redirects nobody", "cni/internal/plugin.TestARuntimeHasPodsRedirected", []edit{
		{"cni/internal/plugin/plugin.go", "	if o != nil {\n", "	if false && o != nil {\n"}}},
	{25, "options that are not understood are passed over", "pkg/redirect.TestOptionsAreReadAsTheyWereWrittenAndNothingElseIs", []edit{
		{"pkg/redirect/options.go", "	d.DisallowUnknownFields()\n", ""}}},
	{25, "the proof is happy with anything", "agent/internal/redirect.TestProof", []edit{
		{"agent/internal/redirect/prove.go", "	proven := false\n", "	proven := true\n"},
		{"agent/internal/redirect/prove.go", "		case noRoute(err):\n", "		case noRoute(err) || err != nil:\n"}}},
	{25, "a pod does not wait for the plugin", "agent/internal/csi.TestAPodWaitsForTheCNIPlugin", []edit{
		{"agent/internal/csi/server.go", "&& !d.pods.Begun(v.Facts.UID) {", "&& !d.pods.Begun(v.Facts.UID) && false {"}}},
	{25, "a pod that had its network before the node restarted does not wait for the plugin", "agent/internal/pods.TestAPodHasBegunUntilTheNodeRestarts", []edit{
		{"agent/internal/pods/registry.go", "	return p != nil && p.identity.HasToken()\n", "	return p != nil\n"}}},
	{25, "what a pod's author says to the plugin is believed", "pilot/inject.TestOnlyInjectionTellsThePlugin", []edit{
		{"pilot/inject/redirect.go", "	delete(pod.Annotations, mesh.RedirectAnnotation) // only what injection writes is believed\n", ""}}},
	{25, "an application may run as the proxy's user", "pilot/inject.TestWhoWouldRunAsTheProxyIsRefused", []edit{
		{"pilot/inject/webhook.go", "if why := runsAsProxy(pod); why != \"\" {", "if why := runsAsProxy(pod); false && why != \"\" {"}}},
	{25, "the program is removed while configurations name it", "cni/internal/node.TestKilledAtAnyMoment", []edit{
		{"cni/internal/node/node.go", "	if _, err := n.takeOut(func(string) bool { return false }); err != nil {\n", "	_ = os.Remove(n.target())\n	if _, err := n.takeOut(func(string) bool { return false }); err != nil {\n"}}},
	{25, "pods start while another program takes the plugin out again", "cni/internal/node.TestAFightIsSaid", []edit{
		{"cni/internal/node/keeper.go", "	if time.Since(k.changed) >= settle {\n", "	if time.Since(k.changed) >= 0 {\n"}}},
	{25, "an upgrade takes the plugin off the node", "TestAPodWithoutThePluginDoesNotStart", []edit{
		{"cni/internal/run/run.go", "	if unwanted.Load() {\n", "	if !unwanted.Load() || true {\n"}}},
	{25, "a keeper that ends for good leaves the plugin", "TestTheInitContainersWayAndBack", []edit{
		{"cni/internal/run/run.go", "	if unwanted.Load() {\n", "	if false && unwanted.Load() {\n"}}},
	{26, "LimitRanges are not kept to", "pilot/inject.TestResourcesKeepToLimitRangesAndToTheClassOfThePod", []edit{
		{"pilot/inject/resources.go", "		if item.Type != core.LimitTypeContainer {\n", "		if true {\n"}}},
	{26, "an annotation of Istio's is silently ignored", "pilot/inject.TestNoAnnotationOfIstiosIsSilent", []edit{
		{"pilot/inject/annotations.go", "		case a.set == nil:\n			c.advise(", "		case a.set == nil && false:\n			c.advise("}}},
	{26, "other pods speak mutual TLS to ports that the proxy does not have", "pilot/internal/compile.TestPortsThatAreLeftOutAreCalledInPlaintext", []edit{
		{"pilot/internal/compile/service.go", "!p.Serves(number)", "!p.Proxied"}}},
	{28, "one good token lets others be bad", "pilot/internal/translate.TestTokensOfSeveralIssuers", []edit{
		{"pilot/internal/translate/token.go", "if slices.ContainsFunc(at, func(place string) bool { return slices.Contains(places[g], place) }) {", "if len(places) > 0 {"}}},
	{28, "a token is taken out of the query, whose escapes are decoded", "pilot/internal/translate.TestWhereTokensAreAndWhatApplicationsGet", []edit{
		{"pilot/internal/translate/token.go", "query.Forward = nil, nil, nil, true\n", "query.Forward = nil, nil, nil, false\n"}}},
	{28, "unknown keys let any token pass", "pilot/internal/translate.TestTokensAreVerified", []edit{
		{"pilot/internal/translate/token.go", "		each = append(each, requirement(group))\n", "		if issuers[group[0]].KeySet != jwt.NoKeys {\n			each = append(each, requirement(group))\n		}\n"},
		{"pilot/internal/translate/token.go", "	all := allRequirements(each)\n", "	if len(each) == 0 {\n		return &jwtauthn.JwtAuthentication{}\n	}\n	all := allRequirements(each)\n"}}},
	{28, "of claims within claims the first name is looked at", "pilot/internal/translate.TestEnvoyAndEvaluatorAgree", []edit{
		{"pilot/internal/rbac/claims.go", "append([]string{Payload}, path...)", "append([]string{Payload}, path[:1]...)"}}},
	{28, "a list of claims has to be one text", "pilot/internal/translate.TestEnvoyAndEvaluatorAgree", []edit{
		{"pilot/internal/rbac/claims.go", "	return or([]*matcher.ValueMatcher{one, {", "	return one\n	return or([]*matcher.ValueMatcher{one, {"}}},
	{28, "the subject of a request principal is not looked at", "pilot/internal/translate.TestEnvoyAndEvaluatorAgree", []edit{
		{"pilot/internal/rbac/policies.go", "claim([]string{\"sub\"}, text(subject))", "claim([]string{\"sub\"}, text(authz.Match{Kind: authz.Present, Value: subject.Value}))"}}},
	{28, "remote addresses are those of the TCP peer", "pilot/internal/translate.TestEnvoyAndEvaluatorAgree", []edit{
		{"pilot/internal/rbac/policies.go", "rbac.Principal_RemoteIp{RemoteIp: cidr(m.Value)}", "rbac.Principal_DirectRemoteIp{DirectRemoteIp: cidr(m.Value)}"}}},
	{28, "an address is not judged when it is dialled", "pilot/internal/keyserver.TestNameThatComesToMeanThisMachineIsNotAsked", []edit{
		{"pilot/internal/keyserver/client.go", "return c.judge(strings.ToLower(host), at.Addr().Unmap())", "_ = c.judge(strings.ToLower(host), at.Addr().Unmap())\n		return nil"}}},
	{28, "a token may follow whatever an author writes", "pilot/internal/translate.TestEnvoyTakesWhatIsAdmitted", []edit{
		{"pkg/jwt/policy.go", "		if from.GetPrefix() != \"\" {\n", "		if false {\n"}}},
	{28, "Pilot asks its own machine for keys", "pilot/internal/keyserver.TestNobodyIsReachedThroughPilot", []edit{
		{"pilot/internal/keyserver/client.go", "at.IsLoopback(), at.IsUnspecified(), at.IsLinkLocalUnicast()", "at.IsLinkLocalUnicast()"}}},
	{28, "keys are dropped when their server is away", "pilot/internal/keyserver.TestKeysAreFetchedAgainAndKept", []edit{
		{"pilot/internal/keyserver/keyserver.go", "		s.fetches.WithLabelValues(\"failed\").Inc()\n", "		s.put(registry.Event{Kind: registry.KeySets, ID: id})\n"}}},
	{28, "a shared secret is a key", "pkg/jwt.TestKeysThatProveNothingAreLeftOut", []edit{
		{"pkg/jwt/keys.go", "	case about.Type == \"oct\":\n", "	case about.Type == \"oct\" && false:\n"}}},
	{28, "changed keys do not reach the proxies", "pilot/internal/compile.TestEffectsNameWhateverDiffers", []edit{
		{"pilot/internal/compile/effects.go", "snap.RequestAuthsBy(k.ID)", "snap.RequestAuthsBy(\"\" + k.ID[:1])"}}},
	{28, "a policy of a Service holds for the whole namespace", "pilot/internal/compile.TestPoliciesOfServices", []edit{
		{"pilot/internal/compile/workload.go", "return len(services) == 0 || of == namespace &&", "return len(services) >= 0 || of == namespace &&"}}},
	{29, "a rule is said to contain another one whose conditions it does not ask for", "pilot/analyze.TestWhatIsSaidOfRulesHolds", []edit{
		{"pkg/authz/contain.go", "c.covers(r.To, other.To, other.When) && c.demanded(r.When, other)", "c.covers(r.To, other.To, other.When)"}}},
	{29, "a rule that denies at ports that are not HTTP is said never to match", "pilot/analyze.TestWhatIsSaidOfRulesHolds", []edit{
		{"pkg/authz/contain.go", "		never = slices.ContainsFunc(c.impossible(left), func(i Impossible) bool { return i.Whole })\n", "		never = true || left.Never\n"}}},
	{29, "matches of tokens are compared as texts", "pkg/authz.TestContainedRulesNeverMatchAlone", []edit{
		{"pkg/authz/contain.go", "return s.several() && s.Attribute != Header }", "return false }"}}},
	{29, "one line of a header is taken for all of them", "pkg/authz.TestOneLineOfAHeaderSaysNothingOfTheOthers", []edit{
		{"pkg/authz/contain.go", "return a.text == nil && a.address == nil && !a.peer && s.Attribute != DestinationPort", "return a.text == nil && a.address == nil && !a.peer && s.Attribute != DestinationPort && s.Attribute != Header"}}},
	{29, "what is not in a folder is said to be missing", "pilot/analyze.TestSituations", []edit{
		{"pilot/analyze/selection.go", "	case inScope == 0 && !w.Whole: // the workloads are elsewhere\n", ""}}},
	{29, "an annotation leaves nothing out", "pilot/analyze.TestExamples", []edit{
		{"pilot/analyze/analyze.go", "if r.said[key] || r.world.ignored(o, code) {", "if r.said[key] {"}}},
	{29, "pods that a file replaces are still looked at", "pilot/analyze.TestSituations", []edit{
		{"pilot/analyze/world.go", "if o.GetKind() == \"Pod\" && maker.Name != \"\" && isNew[maker] {", "if false && maker.Name != \"\" {"}}},
	{30, "the mesh-wide policy of an installation that is only described is forgotten", "meshctl/internal/cli.TestValuesOfTheInstallationStandForItsCluster", []edit{
		{"meshctl/internal/cli/options.go", "			policies = append(policies, o)\n", ""}}},
	{30, "the installation's own policy goes with those of the cluster", "meshctl/internal/cli.TestValuesOfTheInstallationStandForItsCluster", []edit{
		{"meshctl/internal/cli/authz.go", "return o.GetLabels()[mesh.PartOfLabel] != mesh.PartOfValue", "return true"}}},
	{30, "an explanation passes over what must not match", "pkg/authz.TestExplanationAgreesWithTheDecision", []edit{
		{"pkg/authz/explain.go", "	if len(c.Not) == 0 || !c.any(c.Not)(s) {\n", "	if len(c.Not) >= 0 || !c.any(c.Not)(s) {\n"}}},
	{30, "the change that admits a request admits other paths", "pkg/authz.TestChangeAdmitsExactlyTheRequest", []edit{
		{"pkg/authz/admit.go", "		operation(func(o *security.Operation) { o.NotPaths = append(o.NotPaths, e.path) })\n", ""}}},
	{30, "a change of policies is missed where mutual TLS is demanded", "pkg/authz/space.TestDivisionAgreesWithDecisions", []edit{
		{"pkg/authz/space/divide.go", "case mode == authz.Strict && x.kinds[kind].Special == NoIdentity:", "case false && mode == authz.Strict && x.kinds[kind].Special == NoIdentity:"}}},
	{30, "rules that two sets of policies share are never asked", "pkg/authz/space.TestDivisionAgreesWithDecisions", []edit{
		{"pkg/authz/space/narrow.go", "return everywhere(key) && !x.clientKinds(clients[key]).meets(concerned)", "return everywhere(key) && x != nil"}}},
	{30, "headers with several lines are taken for one", "pkg/authz/space.TestDivisionAgreesWithDecisions", []edit{
		{"pkg/authz/space/axis.go", "		if x.Attribute.Many() {\n			return x.unite()", "		if false && x.Attribute.Many() {\n			return x.unite()"}}},
	{30, "what is not recorded is taken for what policies ask", "pilot/explain.TestReplayCountsWhatWouldChange", []edit{
		{"pkg/authz/assume.go", "		holds := cautious == (out[i].Action != Allow)\n", "		holds := true || cautious == (out[i].Action != Allow)\n"}}},
	{30, "what a client's proxy refused is of no service", "pilot/explain.TestReplayCountsWhatWouldChange", []edit{
		{"pilot/explain/record.go", "	for s := range m.snap.ServicesAt(at.Unmap().String()) {\n		return s\n	}\n", ""}}},
	{31, "a policy counts as enforced before its proxies have acknowledged it", "pilot/internal/push.TestPolicyIsEnforcedByWhoHasAcknowledgedIt", []edit{
		{"pilot/internal/push/enforced.go", "				if p.standing.taken < since {\n", "				if p.standing.taken < since && false {\n"}}},
	{31, "what is enforced is not any more when a newer policy is on its way", "pilot/internal/push.TestPolicyIsEnforcedByWhoHasAcknowledgedIt", []edit{
		{"pilot/internal/push/enforced.go", "p.standing.taken = s.progress.turn - 1", "p.standing.taken = 0"}}},
	{31, "all policies are counted anew when one changes", "pilot/internal/push.TestOnlyWhatMovedIsCountedAnew", []edit{
		{"pilot/internal/push/enforced.go", "				if compile.HoldsFor(s.catalog.Snapshot(), s.settings.RootNamespace, v, f.class.Namespace, f.class.Labels) {\n					out", "				if v.Name != \"\" || f == nil {\n					out"}}},
	{31, "a policy of a Service counts proxies that are behind another", "pilot/internal/push.TestPolicyOfAServiceIsCountedBehindIt", []edit{
		{"pilot/internal/compile/workload.go", "v.Selects(rootNamespace, namespace, labels) && targeted(snap, v.Namespace, v.Services, namespace, labels)", "v.Selects(rootNamespace, namespace, labels)"}}},
	{31, "a Service that leads elsewhere leaves the counts as they were", "pilot/internal/push.TestPolicyOfAServiceIsCountedBehindIt", []edit{
		{"pilot/internal/push/enforced.go", "		if ch.Kind == registry.Services {\n", "		if false && ch.Kind == registry.Services {\n"}}},
	{31, "pods whose node has no agent are left out of the count", "pilot/internal/enforcement.TestCensusIsOfAllPilots", []edit{
		{"pilot/internal/enforcement/census.go", "len(p.IPs) > 0 && !nodes[p.Node] {", "len(p.IPs) > 0 && !nodes[p.Node] && false {"}}},
	{31, "Pilots write against each other", "pilot/internal/enforcement.TestOneOfThePilotsLeads", []edit{
		{"pilot/internal/enforcement/census.go", "return len(pilots) == 0 || pilots[0].Name == c.own", "return len(pilots) == 0 || pilots[0].Name != \"\""}}},
	{31, "any workload may ask a Pilot which proxies lag", "pilot/internal/enforcement.TestOnlyPilotsAreAnswered", []edit{
		{"pilot/internal/enforcement/peers.go", "	if !slices.Contains(s.Allow, id) {\n", "	if !slices.Contains(s.Allow, id) && false {\n"}}},
	{31, "each acknowledgement is a write", "pilot/internal/status.TestManyAcknowledgementsAreFewWrites", []edit{
		{"pilot/internal/status/follow.go", "	if slow && now.Sub", "	if false && slow && now.Sub"}}},
	{31, "a policy is written more than once a second", "pilot/internal/status.TestAPolicyIsWrittenOnceASecondAtMost", []edit{
		{"pilot/internal/status/writer.go", "!until.IsZero() {", "!until.IsZero() && false {"}}},
	{31, "an older generation of a policy is taken for what is waited for", "meshctl/internal/cli.TestWhatAPolicysStatusTells", []edit{
		{"meshctl/internal/cli/wait.go", "m[\"type\"] == typ && generation == u.GetGeneration() {", "m[\"type\"] == typ && generation <= u.GetGeneration() {"}}},
	{32, "what a policy forbids goes on if it is open", "pilot/internal/translate.TestWhatIsEndedIsWhatTheEvaluatorDenies", []edit{
		{"pilot/internal/open/rules.go", "either(plaintext, forbidden(tcp)))", "either(plaintext, both(no, forbidden(tcp))))"}}},
	{32, "an Envoy is to read a module that its agent does not have", "pilot/internal/featuretest.TestTheModuleIsSentToWhoHasNoFileOfIt", []edit{
		{"pilot/internal/translate/open.go", "return version == closer.Version", "return version != \"\""}}},
	{32, "rules about what is open bring a module along that the pod has", "pilot/internal/featuretest.TestTheModuleIsSentToWhoHasNoFileOfIt", []edit{
		{families + "authorization.go", "	out := []Resource{Authorization{class, translate.OpenRules, translate.ModuleByThePod}}\n", "	var out []Resource\n"}}},
	{32, "what no policy forbids ends with what one does", "pilot/internal/translate.TestWhatIsEndedIsWhatTheEvaluatorDenies", []edit{
		{"pilot/internal/open/rules.go", "		denied = append(denied, not(either(allowed...)))\n", "		denied = append(denied, yes)\n"}}},
	{32, "a stream goes on whose path is forbidden", "pilot/internal/push.TestOfOneConnectionWhatAskedForItEnds", []edit{
		{"pilot/internal/open/expression.go", "authz.Path: path}", "authz.Claim: path}"}}},
	{32, "addresses in policies end nothing that is open", "pilot/internal/translate.TestWhatIsEndedIsWhatTheEvaluatorDenies", []edit{
		{"pilot/internal/open/expression.go", "err != nil || m.Kind != authz.CIDR", "err != nil || m.Kind != authz.Exact"}}},
	{32, "what servers read in different ways goes on where a rule looks at it now", "pilot/internal/translate.TestWhatIsEndedIsWhatTheEvaluatorDenies", []edit{
		{"pilot/internal/open/rules.go", "	return either(out...)\n}\n\n// forbidden:", "	return either()\n}\n\n// forbidden:"}}},
	{32, "what a revoked identity has open goes on", "pilot/internal/push.TestRevokedIdentityHasNoTCPConnection", []edit{
		{"pilot/internal/open/rules.go", "		all = append(all, x)\n", "		all = append(all, both(no, x))\n"}}},
	{32, "a stream goes on whose token is forbidden", "pilot/internal/translate.TestWhatIsEndedIsWhatTheEvaluatorDenies", []edit{
		{"pilot/internal/open/expression.go", "		return isClaim(claim, authz.ClaimPath(c.Key), m)\n", "		return maybe\n"}}},
	{32, "a token's issuer alone, or its subject alone, is a principal", "pilot/internal/open.TestClaimsOfStreamsAreWhatTheEvaluatorTakesThemFor", []edit{
		{"pilot/internal/open/expression.go", "both(isClaim(claimText, ", "either(isClaim(claimText, "}}},
	{32, "a stream goes on whose token has a number that is forbidden", "pilot/internal/open.TestClaimsOfStreamsAreWhatTheEvaluatorTakesThemFor", []edit{
		{"pilot/internal/open/expression.go", "m.Number(); ok && kind == claim {", "m.Number(); ok && kind == header {"}}},
	{32, "a list stands for a token's subject", "pilot/internal/open.TestClaimsOfStreamsAreWhatTheEvaluatorTakesThemFor", []edit{
		{"pilot/internal/open/expression.go", "claimText  = \"i\"", "claimText  = \"c\""}}},
	{32, "what a token said counts when its issuer is believed no more", "pilot/internal/push.TestTokensCountAsLongAsTheirIssuerIsNamed", []edit{
		{"pilot/internal/open/rules.go", "		token = believed(w.Issuers)\n", "		token = yes\n"}}},
	{33, "anybody may name himself by the PROXY protocol", "pilot/internal/featuretest.TestOnlyLoadBalancersSayForWhomTheyConnect", []edit{
		{"pilot/internal/translate/proxied.go", "OnMatch: takenBy(refused)}}}}, OnNoMatch", "OnMatch: nested(m)}}}}, OnNoMatch"}}},
	{33, "a PROXY header chooses where the connection goes", "pilot/internal/featuretest.TestOnlyLoadBalancersSayForWhomTheyConnect", []edit{
		{"pilot/internal/translate/proxied.go", "headerMisleads: takenBy(refused), ", ""}}},
	{33, "the load balancers of the installation do not come to Pilot", "TestLoadBalancersSayForWhomTheyConnect", []edit{
		{"pilot/internal/server/server.go", "LoadBalancers: balancers, ", "LoadBalancers: balancers[:0], "}}},
	{33, "the trail does not tell clients of a load balancer from it", "agent/internal/als.TestTheRemoteAddressIsThatOfAnother", []edit{
		{"agent/internal/als/convert.go", "remote != e.GetSourceAddress() {", "remote == e.GetSourceAddress() {"}}},
	{33, "proxies do not say for whom load balancers connect", "TestLoadBalancersSayForWhomTheyConnect", []edit{
		{"pilot/internal/telemetry/accesslog.go", "%DOWNSTREAM_REMOTE_ADDRESS%\"} // of the client", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%\"} // of the client"}}},
	{30, "what is proposed for one client of a load balancer admits all of them", "pilot/explain.TestClientsOfLoadBalancersAreToldApart", []edit{
		{"pkg/authz/admit.go", "		source.RemoteIpBlocks = []string{req.RemoteIP.Unmap().String()}\n", "		source.IpBlocks = []string{req.SourceIP.Unmap().String()}\n"}}},
	{30, "a record is judged by its peer's address alone", "pilot/explain.TestClientsOfLoadBalancersAreToldApart", []edit{
		{"pilot/explain/record.go", "		out.Ask.RemoteIP = remote.Addr().Unmap()\n", "		_ = remote\n"}}},
	{30, "records are decided again by their peers' addresses alone", "pilot/explain.TestClientsOfLoadBalancersAreToldApart", []edit{
		{"pilot/explain/observed.go", "		o.request.RemoteIP = remote.Addr()\n", "		_ = remote\n"}}},
	{33, "X-Forwarded-For counts though no proxy is trusted", "pilot/internal/featuretest.TestOnlyLoadBalancersSayForWhomTheyConnect", []edit{
		{"pilot/internal/translate/inbound.go", "return 1 << 20", "return 0"}}},
	{33, "an external authorizer is never asked", "pilot/internal/translate.TestExternalAuthorizersAreAsked", []edit{
		{"pilot/internal/rbac/custom.go", "if p.Action != authz.Custom || p.Ignored || p.Provider != provider {", "if p.Action != authz.Custom || !p.Ignored || p.Provider != provider {"}}},
	{33, "an external authorizer is asked about what is for another one", "pilot/internal/translate.TestExternalAuthorizersAreAsked", []edit{
		{"pilot/internal/rbac/custom.go", "|| p.Ignored || p.Provider != provider {", "|| p.Ignored {"}}},
	{33, "what an authorizer that is down would be asked passes", "pilot/internal/translate.TestExternalAuthorizersAreAsked", []edit{
		{"pilot/internal/translate/custom.go", "FailureModeAllow: p.FailOpen, StatusOnError", "FailureModeAllow: true, StatusOnError"}}},
	{33, "connections pass whose authorizer is down", "pilot/internal/translate.TestExternalAuthorizersAreAskedAboutConnections", []edit{
		{"pilot/internal/translate/custom.go", "FailureModeAllow: asked[i].FailOpen, TransportApiVersion", "FailureModeAllow: true, TransportApiVersion"}}},
	{33, "of five authorizers of a connection one is forgotten", "pilot/internal/translate.TestExternalAuthorizersAreAskedAboutConnections", []edit{
		{"pilot/internal/translate/custom.go", "			others = append(others, p)\n", ""}}},
	{33, "a second authorizer of a connection is not asked", "pilot/internal/translate.TestExternalAuthorizersAreAskedAboutConnections", []edit{
		{"pilot/internal/translate/custom.go", "	if i >= len(asked) {\n		return out\n", "	if i > 0 {\n		return out\n"}}},
	{33, "a listener does not follow a second authorizer of connections", "pilot/internal/translate.TestSameInboundListenerSaysWhatMakingBothWould", []edit{
		{"pilot/internal/translate/inbound.go", "askSeveral(a) != askSeveral(b) ||", ""}}},
	{33, "a second authorizer of connections is not told", "pilot/internal/push.TestFurtherAuthorizersOfConnectionsComeAndGo", []edit{
		{"pilot/internal/translate/authorization.go", "	return s.further < len(asked)\n", "	return len(asked) > 4\n"}}},
	{33, "a policy whose authorizer is not there denies nothing", "pkg/authz.TestWhetherAnAuthorizerIsAsked", []edit{
		{"pkg/authz/build.go", "		p.Action = Deny\n		b.warn(", "		b.warn("}}},
	{33, "an external authorizer is asked about the question", "pilot/internal/compile.TestNobodyIsAskedAboutTheQuestion", []edit{
		{"pilot/internal/compile/workload.go", "if p.Action == authz.Custom && authorizes {", "if p.Action == authz.Custom && authorizes && false {"}}},
	{33, "whom an external authorizer does not answer is told of as allowed", "agent/internal/als.TestExternalAuthorizersAreNamed", []edit{
		{"agent/internal/als/convert.go", "if answer, ok := authorizers[details]; ok {", "if answer, ok := authorizers[details]; ok && details != \"ext_authz_error\" {"}}},
	{33, "a change of what authorizers are asked is missed", "pilot/explain.TestDiffNamesWhatChangesAndNothingElse", []edit{
		{"pilot/explain/diff.go", "			out.compare(known, before, name, authorizer, a, b)\n", "			_ = authorizer\n"}}},
	{20, "what policies on trial would deny is not logged", "pilot/internal/translate.TestTrialsAgreeWithTheEvaluator", []edit{
		{"pilot/internal/telemetry/telemetry.go", "either(audited(), triedOut(httpPolicies), deniedByAuthorizer(), deniedByPolicy())", "either(audited(), deniedByAuthorizer(), deniedByPolicy())"}}},
	{20, "an ALLOW policy on trial is said to deny what another one allows", "pilot/internal/translate.TestTrialsAgreeWithTheEvaluator", []edit{
		{"pilot/internal/rbac/policies.go", "		shadow.Action = rbac.RBAC_LOG\n", "		shadow.Action = rbac.RBAC_ALLOW\n"}}},
	{20, "ambiguous paths are not on trial with the policies that look at paths", "pilot/internal/translate.TestTrialsAgreeWithTheEvaluator", []edit{
		{"pilot/internal/rbac/policies.go", "return !p.Ignored && p.DryRun && a.Concerns(p)", "return false && a.Concerns(p)"}}},
	{20, "what is denied all the same is said to be allowed on trial", "agent/internal/als.TestTrials", []edit{
		{"agent/internal/als/trial.go", "e.GetReason() == telemetryv1.ReasonNoAllow && deny == \"\" && allow", "allow"}}},
	{28, "keys that could not be written down at once never are", "pilot/internal/keyserver.TestKeysAreWrittenDownInTheEnd", []edit{
		{"pilot/internal/keyserver/keyserver.go", "for wait := saveEvery; ; wait = retry.NextBackOff() {", "for wait := saveEvery; wait == saveEvery; wait = retry.NextBackOff() {"}}},
}

const (
	script = "pilot/internal/translate/probes.lua"

	session    = "pkg/deltaxds/session.go"
	everyWorld = "pkg/deltaxds.TestProxyAndServerAgreeInEveryWorld"

	nodexds     = "pkg/nodexds/"
	families    = "pilot/internal/catalog/"
	everyChange = "pilot/internal/featuretest.TestIncrementalEqualsFresh"
)
