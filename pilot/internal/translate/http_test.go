package translate

import (
	"regexp"
	"testing"
)

// TestOffersToGoOnInWhatProxiesDoNotKnow: what Envoy is to ignore of a client's Upgrade header, and what it is not to.
func TestOffersToGoOnInWhatProxiesDoNotKnow(t *testing.T) {
	ignored := regexp.MustCompile("^" + http1().GetIgnoreHttp_11Upgrade()[0].GetSafeRegex().GetRegex() + "$") // Envoy asks for the whole text
	for _, token := range upgradeTokens {
		if ignored.MatchString(token) {
			t.Errorf("%q would be ignored, and is known", token)
		}
	}
	for _, token := range []string{"h2c", "H2C", "HTTP/2.0", "TLS/1.2", "tls/1.0", "IRC/6.9", "connect-udp", "connect-ip", "RTA/x11", "smoke-signals/2", "yamux", "é"} {
		if !ignored.MatchString(token) {
			t.Errorf("%q would be refused, as no server may that has not heard of it", token)
		}
	}
}
