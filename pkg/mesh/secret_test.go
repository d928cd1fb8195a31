package mesh

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

func TestEachAccountHasASecretNameOfItsOwn(t *testing.T) {
	seen := map[string]string{}
	for _, account := range []string{"a", "payroll", "my.app", strings.Repeat("b", 245), strings.Repeat("b", 246), strings.Repeat("b", 253), strings.Repeat("b", 252) + "c",
		strings.TrimPrefix(SecretName(strings.Repeat("b", 253)), "bulwark-long.")} {
		name := SecretName(account)
		if e := validation.IsDNS1123Subdomain(name); len(e) > 0 || !IsSecretName(name) {
			t.Errorf("%s: %s %v", account, name, e)
		}
		if other, taken := seen[name]; taken {
			t.Errorf("%s and %s have the Secret %s", account, other, name)
		}
		seen[name] = account
		if got := SecretAccount(name, "other", account); got != account {
			t.Errorf("%s is of %q", name, got)
		}
	}
	if SecretName("payroll") != "bulwark.payroll" || IsSecretName("bulwark.") || IsSecretName("bulwark-ca") || SecretAccount("bulwark-long.00", "x") != "" {
		t.Error("names that others rely on")
	}
}
