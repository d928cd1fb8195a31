package proxyprotocol

import (
	"fmt"
	"strings"
	"testing"
)

func TestPorts(t *testing.T) {
	for list, want := range map[string]string{
		"": "[] <nil>", " ": "[] <nil>", "8080": "[8080] <nil>", "8443, 8080,8443": "[8080 8443] <nil>",
		"0": "no port", "65536": "no port", "http": "no port", "8080,": "no port", "-1": "no port", "8080;8443": "no port", "*": "no port",
		strings.Repeat("1,", 40) + "2": "[1 2] <nil>",
	} {
		got, err := Ports(list)
		if text := fmt.Sprint(got, err); !strings.Contains(text, strings.TrimPrefix(want, "[] ")) {
			t.Errorf("%q: %s, want %s", list, text, want)
		}
	}
	var many []string
	for i := range MaxPorts + 1 {
		many = append(many, fmt.Sprint(i+1))
	}
	if got, err := Ports(strings.Join(many, ",")); err == nil {
		t.Errorf("%d ports are taken", len(got))
	}
}

func TestNetworks(t *testing.T) {
	for list, want := range map[string]string{
		"10.0.0.0/24,2001:db8::/64": "[10.0.0.0/24 2001:db8::/64] <nil>", "10.0.0.7": "[10.0.0.7/32] <nil>", "10.0.0.7/24": "[10.0.0.0/24] <nil>",
		"0.0.0.0/0": "everybody", "::/0": "everybody", "10.0.0.0/33": "neither", "lb.example": "neither", "": "neither", "fe80::1%eth0": "neither", "::ffff:10.0.0.0/104": "neither",
	} {
		got, err := Networks(strings.Split(list, ","))
		if text := fmt.Sprint(got, err); !strings.Contains(text, want) {
			t.Errorf("%q: %s, want %s", list, text, want)
		}
	}
	if got, err := Networks(nil); got != nil || err != nil {
		t.Errorf("%v, %v of none", got, err)
	}
}
