package main

// outside are mutations of what is said of what is outside of the mesh, and of how proxies speak with it and with Services.
var outside = []mutation{
	{36, "a server outside may have any name", outsideTraffic + "TestServersOutsideProveTheirNames", []edit{
		{origination, "	for _, name := range names {\n", "	for _, name := range names[:0] {\n"}}},
	{36, "of many hosts of a wildcard, a server may have the name of any", outsideTraffic + "TestServersOutsideProveTheirNames", []edit{
		{origination, "AutoSanValidation: x.Names() == nil", "AutoSanValidation: false"}}},
	{36, "another authority vouches for a server outside, too", outsideTraffic + "TestServersOutsideProveTheirNames", []edit{
		{origination, "TrustedCa: file(roots)", "TrustedCa: file(roots), TrustChainVerification: tls.CertificateValidationContext_ACCEPT_UNTRUSTED"}}},
	{36, "a rule that cannot be enforced leaves plaintext", outsideTraffic + "TestServersOutsideProveTheirNames", []edit{
		{"pilot/internal/compile/outside.go", "		out.Closed = true\n", "		out.Closed = false\n"}}},
	{36, "an Envoy that does not take a rule goes on in plaintext", outsideTraffic + "TestTLSThatCannotBeHadIsNotPlaintext", []edit{
		{"pilot/internal/compile/outside.go", "	if tls {\n", "	if false && tls {\n"}}},
	{36, "TLS is put around clients' own TLS", outsideTraffic + "TestConnectionsOutsideGoWhereTheirNameOrAddressSays", []edit{
		{"pilot/internal/compile/outside.go", "	if p.TLS && !e.Internal {\n", "	if false && p.TLS && !e.Internal {\n"},
		{"pilot/internal/compile/outside.go", "	case !p.TLS && t.Secures():\n", "	case t.Secures():\n"}}},
	{36, "a namespace names hosts for others", "pilot/internal/validate.TestWhatIsOutsideIsRefusedByFieldAndReason", []edit{
		{"pilot/internal/registry/serviceentry.go", "		case own != root && ns != \".\" && ns != own:\n", "		case false && own != root && ns != \".\" && ns != own:\n"}}},
	{36, "a Service's name may be given to something outside", "pilot/internal/validate.TestWhatIsOutsideIsRefusedByFieldAndReason", []edit{
		{"pilot/internal/registry/outside.go", "	case OfCluster(name):\n", "	case false && OfCluster(name):\n"}}},
	{36, "an address of the mesh may be named anew", "pilot/internal/compile.TestAddressesOfTheMeshAreNotNamedAnew", []edit{
		{"pilot/internal/compile/outside.go", "out.Addresses[at] == nil && !OfMesh(snap, out.Ranges, ip) {\n", "out.Addresses[at] == nil {\n"}}},
	{36, "a network of Services' addresses may be named anew", outsideTraffic + "TestNetworksAreThoseOfTheNarrowest", []edit{
		{"pilot/internal/compile/outside.go", " && !OfServices(out.Ranges, n) {\n", " {\n"}}},
	{36, "a network takes the addresses of pods in it", outsideTraffic + "TestNetworksAreThoseOfTheNarrowest", []edit{
		{"pilot/internal/translate/outside.go", "	if own := o.OwnIn(networks); len(own) > 0 {\n", "	if own := o.OwnIn(networks); len(own) < 0 {\n"}}},
	{36, "a pod that comes into a network is not told", "pilot/internal/compile.TestEffectsNameNothingElse", []edit{
		{"pilot/internal/registry/serviceentry.go", "		for e := range ServiceEntries.all(s, \"networked\", true) {\n", "		for e := range ServiceEntries.all(s, \"networked\", false) {\n"}}},
	{36, "a server of the mesh outside may have any identity of it", outsideTraffic + "TestServersOfTheMeshOutsideProveTheirIdentity", []edit{
		{"pilot/internal/handshake/tls.go", "	return mutual(x.Identities, x.Protocol,", "	return mutual([]string{\"spiffe://cluster.local/ns/finance/sa/vm\", \"spiffe://cluster.local/ns/finance/sa/other\"}, x.Protocol,"}}},
	{36, "a server of the mesh outside is spoken with in plaintext", outsideTraffic + "TestServersOfTheMeshOutsideProveTheirIdentity", []edit{
		{"pilot/internal/translate/outside.go", "	case x.Mutual:\n", "	case false && x.Mutual:\n"}}},
	{36, "a server of the mesh outside that is revoked serves", "pilot/internal/compile.TestEffectsNameWhateverDiffers", []edit{
		{"pilot/internal/compile/outside_effects.go", "		if entry.Internal {\n", "		if false && entry.Internal {\n"}}},
	{36, "a server of the mesh outside needs no identity", "pilot/internal/validate.TestWhatIsOutsideIsRefusedByFieldAndReason", []edit{
		{"pilot/internal/registry/serviceentry.go", "	if len(r.spec.SubjectAltNames) == 0 && len(r.spec.Endpoints) == 0 {\n", "	if false && len(r.spec.Endpoints) == 0 {\n"}}},
	{36, "ISTIO_MUTUAL without an identity leaves plaintext", outsideTraffic + "TestServersOfTheMeshOutsideProveTheirIdentity", []edit{
		{"pilot/internal/compile/outside.go", "		out.Closed = !out.Mutual // it has no identity of the mesh\n", ""}}},
	{36, "proxies with certificates from Secrets show another one outside", outsideTraffic + "TestGolden", []edit{
		{families + "subject.go", "			out = append(out, ofOutside(s.outside).by(s.delivery))\n", ""}}},
	{36, "an application may have any name", outsideTraffic + "TestApplicationsOfServicesProveTheirNames", []edit{
		{"pilot/internal/translate/cluster.go", "handshake.Origination(p.TLS, p.Names(), p.ServerName())", "handshake.Origination(p.TLS, nil, p.ServerName())"}}},
	{36, "an Envoy that does not take a rule for applications goes on in plaintext", outsideTraffic + "TestTLSWithApplicationsThatCannotBeHadIsNotPlaintext", []edit{
		{"pilot/internal/compile/service.go", "	case p.TLS == nil:\n", "	case true || p.TLS == nil:\n"}}},
	{36, "clients of a namespace have the listeners of all for applications with TLS", outsideTraffic + "TestRulesForApplicationsComeAndGo", []edit{
		{families + "service.go", "compile.Secured(c.snap, c.settings, s, ruled) || ", ""}}},
	{36, "a rule for applications that comes has proxies wait for endpoints", outsideTraffic + "TestRulesForApplicationsComeAndGo", []edit{
		{"pilot/internal/compile/outside_effects.go", "	e.Services[id], e.Endpoints[id] = true, true\n", "	e.Services[id] = true\n"}}},
	{36, "a change of rules leaves listeners of Services as they are", "pilot/internal/compile.TestEffectsNameWhateverDiffers", []edit{
		{"pilot/internal/compile/outside_effects.go", "			e.Frontends[at] = true\n", "			_ = at\n"}}},
	{36, "an external authorizer is asked in spite of a rule that it cannot be asked by", "pilot/internal/compile.TestWhoAsksAnAuthorizerDoesNotSayHow", []edit{
		{"pilot/internal/compile/rules.go", "	case t.Secures() && set.Asks(p.Service.ID):", "	case false && set.Asks(p.Service.ID):"}}},
	{36, "what a subset says of TLS is not looked at", "pilot/internal/validate.TestWhatIsOutsideIsRefusedByFieldAndReason", []edit{
		{"pilot/internal/registry/destinationrule.go", "			r.ports(field+\".trafficPolicy\", p.GetPortLevelSettings())\n", ""}}},
	{36, "a network of the proxy's own machine may be named", "pilot/internal/validate.TestWhatIsOutsideIsRefusedByFieldAndReason", []edit{
		{"pilot/internal/registry/outside.go", "		case !own.Overlaps(network):\n", "		case !own.Overlaps(network) || !network.IsSingleIP():\n"}}},
	{36, "the younger of two names a host", "pilot/internal/compile.TestAHostIsNamedOnceInANamespace", []edit{
		{"pilot/internal/compile/outside.go", "return a.Created.Compare(b.Created) })", "return b.Created.Compare(a.Created) })"}}},
	{36, "a rule that names no server takes an unverified one", "pilot/internal/validate.TestWhatIsOutsideIsRefusedByFieldAndReason", []edit{
		{"pilot/internal/registry/destinationrule.go", "	if t.InsecureSkipVerify.GetValue() {\n", "	if false && t.InsecureSkipVerify.GetValue() {\n"}}},
	{36, "a field that is not supported is taken", "pilot/internal/registry.TestFieldsThatAreRefusedWhole", []edit{
		{"pilot/internal/registry/destinationrule.go", "fieldsBut(\"spec.trafficPolicy\", p, notYet, \"tls\", \"portLevelSettings\")", "fieldsBut(\"spec.trafficPolicy\", p, notYet, \"tls\", \"portLevelSettings\", \"tunnel\")"}}},
	{36, "a namespace that comes to say something itself keeps what all have", outsideTraffic + "TestTheFirstNameOfANamespaceIsKnown", []edit{
		{families + "catalog.go", " || t.effects.Outside[p.Namespace] || t.effects.Outside[\"\"]", ""}}},
	{36, "a changed ServiceEntry is not told", everyChange, []edit{
		{families + "outside.go", "		if t.effects.Outside[\"\"] || t.effects.Outside[whose.Namespace] ||", "		if whose.Sidecar == \"\" && whose.Namespace != \"\" {\n			continue\n		}\n		if t.effects.Outside[\"\"] || t.effects.Outside[whose.Namespace] ||"}}},
	{36, "a rule for a Service is not told to whom it is for", everyChange, []edit{
		{families + "service.go", "	maps.Copy(out, compile.RuledFor(t.was, c.settings, service))\n", ""}}},
	{36, "a rule's identity that is revoked serves", "pilot/internal/compile.TestNamedIdentitiesAreRevocableAndKnowAliases", []edit{
		{"pilot/internal/compile/rules.go", "			if !set.revoked(snap, uri) {\n", "			if true || !set.revoked(snap, uri) {\n"}}},
	{36, "a rule of any namespace holds for all clients", "pilot/internal/compile.TestRulesAreLookedUpByNamespace", []edit{
		{"pilot/internal/compile/rules.go", "if d.Namespace == ns && exportedTo(d.ExportTo, d.Namespace, clients) && ", "if ns != \"\" && exportedTo(d.ExportTo, d.Namespace, clients) && "}}},
	{36, "who asks an external authorizer says how it is spoken with", "pilot/internal/compile.TestWhoAsksAnAuthorizerDoesNotSayHow", []edit{
		{"pilot/internal/compile/rules.go", "	if set.Asks(s.ID) {\n", "	if false && set.Asks(s.ID) {\n"}}},
	{36, "who is confined may call what has no name", outsideTraffic + "TestTheConfinedReachOnlyWhatHasAName", []edit{
		{"pilot/internal/translate/outbound.go", "	if confined {\n		return outOfReach(nil)\n", "	if false && confined {\n		return outOfReach(nil)\n"}}},
	{36, "who is confined may name any host where some have names", outsideTraffic + "TestTheConfinedReachOnlyWhatHasAName", []edit{
		{"pilot/internal/translate/outside.go", "	if o.Only {\n", "	if false && o.Only {\n"}}},
	{36, "who is confined knows hosts that the Sidecar hides", outsideTraffic + "TestTheConfinedReachOnlyWhatHasAName", []edit{
		{"pilot/internal/compile/outside.go", "			if out.Only && !importsHost(", "			if false && out.Only && !importsHost("}}},
	{36, "the confined are not told of a Sidecar that has changed", outsideTraffic + "TestTheConfinedReachOnlyWhatHasAName", []edit{
		{families + "outside.go", " || whose.Sidecar != \"\" && t.effects.Sidecared(whose.Namespace)", ""}}},
	{36, "a Sidecar that cannot be read confines nobody", "pilot/internal/registry.TestSidecarsSayWhereTheirWorkloadsMayConnect", []edit{
		{"pilot/internal/registry/sidecar.go", "	return RegistryOnly\n}", "	return \"\"\n}"}}},
	{36, "a proxy has any volume that its pod's author likes", "pilot/inject.TestFilesThatAProxyMayNotHave", []edit{
		{"pilot/inject/files.go", "		case !ofNamespace(v.VolumeSource):\n", "		case false && !ofNamespace(v.VolumeSource):\n"}}},
}

const (
	outsideTraffic = "pilot/internal/featuretest."
	origination    = "pilot/internal/handshake/origination.go"
)
