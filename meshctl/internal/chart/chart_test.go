package chart

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestUnknownSettingIsNamed(t *testing.T) {
	for _, set := range []string{"citadel.workloadTLL=1h", "mtls=maybe", "nothing=1"} {
		values, err := Values(nil, nil, []string{set}, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Render(values)
		key := set[strings.LastIndex(set[:strings.Index(set, "=")], ".")+1 : strings.Index(set, "=")]
		if err == nil || !strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "\n") {
			t.Errorf("--set %s: got %v, want one line that names %s", set, err, key)
		}
	}
}

func TestStrictRendersAMeshWidePolicy(t *testing.T) {
	count := func(set ...string) (n int) {
		values, err := Values(nil, nil, set, nil)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := Render(values)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			if o.GetKind() == "PeerAuthentication" {
				n++
			}
		}
		return n
	}
	if count() != 0 || count("mtls=strict") != 1 {
		t.Fatal("a PeerAuthentication is rendered exactly with mtls=strict")
	}
}

// The privileges that the design gives each component, as its chart grants them.
func TestPilotReadsNoSecretAndMixerSignsNothing(t *testing.T) {
	objects, err := Render(map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if !strings.HasSuffix(o.GetKind(), "Role") {
			continue
		}
		rules, _ := o.Object["rules"].([]any)
		for _, r := range rules {
			rule := r.(map[string]any)
			resources, _ := rule["resources"].([]any)
			for _, resource := range resources {
				switch {
				case resource == "*":
					t.Errorf("%s %s has a wildcard", o.GetKind(), o.GetName())
				case resource == "secrets" && o.GetName() != "bulwark-citadel" && (o.GetName() != "bulwark-mixer" || o.GetKind() != "Role" || rule["resourceNames"] == nil):
					t.Errorf("%s %s may touch Secrets", o.GetKind(), o.GetName())
				case strings.Contains(resource.(string), "authorizationpolicies") && o.GetName() != "bulwark-pilot":
					t.Errorf("%s %s may touch policies", o.GetKind(), o.GetName())
				}
			}
		}
	}
}

// What a component would refuse is refused before anything is applied.
func TestSettingsThatComponentsRefuseAreRefusedHere(t *testing.T) {
	for set, names := range map[string]string{
		"citadel.workloadTTL=1s":               "workloadTTL",
		"citadel.rootTTL=1h":                   "rootTTL",
		"citadel.secrets.ttl=20s":              "secretTTL",
		"citadel.secrets.rotationFraction=0.9": "fraction",
		"citadel.secrets.rotationMinimum=23h":  "minimum",
		"citadel.kubeletSync=2h":               "kubeletSync",
		"citadel.keyType=rsa-1024":             "keyType",
		"image.tag=a b":                        "tag",
		"image.tag=-x":                         "tag",
		"image.registry=":                      "registry",
		"image.registry=docker.io/bul wark":    "registry",
		"trustDomain=Cluster.local":            "trustDomain",
		"trustDomain=":                         "trustDomain",
		"pilot.replicas=0":                     "replicas",
		"pilot.replicas=lots":                  "replicas",
		"citadel=x":                            "citadel",
		"citadel.upstream.signer=a b":          "signer",
		"mixer.storage.size=much":              "size",
		"mtls=Strict":                          "mtls",
		"image.pullPolicy=Sometimes":           "pullPolicy",
		"loadBalancers={10.0.0.0/24,::/0}":     "everybody be believed",
		"loadBalancers={10.0.0.0/33}":          "neither a network",
		"loadBalancers={lb.example}":           "loadBalancers",
		"extensionProviders[0].name=a":         "neither envoyExtAuthzGrpc nor envoyExtAuthzHttp",
		"extensionProviders[0].name=a,extensionProviders[0].envoyExtAuthzGrpc.service=opa,extensionProviders[0].envoyExtAuthzGrpc.port=1":                                                                   "not <name>.<namespace>.svc",
		"extensionProviders[0].name=a,extensionProviders[0].envoyExtAuthzGrpc.service=a.b.svc.cluster.local,extensionProviders[0].envoyExtAuthzGrpc.port=1,extensionProviders[0].envoyExtAuthzGrpc.wrong=1": "wrong",
		"citadel.secrets.rotationFraction=0.3,citadel.secrets.rotationJitter=0.2":                                                                                                                           "fraction",
	} {
		values, err := Values(nil, nil, []string{set}, nil)
		if err == nil {
			_, err = All(values, nil)
		}
		if err == nil || !strings.Contains(err.Error(), names) || strings.Contains(err.Error(), "\n") {
			t.Errorf("--set %s: got %v, want one line that names %s", set, err, names)
		}
	}
}

func TestSettingsStayUntilTheyAreChanged(t *testing.T) {
	first, err := Values(nil, nil, []string{"mtls=strict", "citadel.workloadTTL=1h", "citadel.secrets.optIn=true"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	object, err := Settings(first)
	if err != nil {
		t.Fatal(err)
	}
	data, _, _ := unstructured.NestedStringMap(object.Object, "data")
	remembered, err := Remembered(data)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file string
		set  []string
		want string
	}{
		"nothing said": {"", nil, `map[citadel:map[secrets:map[optIn:true] workloadTTL:1h] mtls:strict]`},
		"one changed":  {"", []string{"citadel.workloadTTL=2h"}, `map[citadel:map[secrets:map[optIn:true] workloadTTL:2h] mtls:strict]`},
		"taken back":   {"", []string{"citadel.secrets.optIn=null"}, `map[citadel:map[workloadTTL:1h] mtls:strict]`},
		"a group back": {"citadel: null", nil, `map[mtls:strict]`},
		"a file on the input, and a flag over it": {"mtls: permissive\ncitadel: {workloadTTL: 3h}", []string{"citadel.workloadTTL=4h"},
			`map[citadel:map[secrets:map[optIn:true] workloadTTL:4h] mtls:permissive]`},
	} {
		var files []string
		if c.file != "" {
			files = []string{"-"}
		}
		got, err := Values(remembered, files, c.set, strings.NewReader(c.file))
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, %v; want %s", name, got, err, c.want)
		}
		if _, err := All(got, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if fmt.Sprint(remembered) != fmt.Sprint(first) {
		t.Errorf("%v is remembered as %v", first, remembered)
	}
}

// kubectl apply -f - takes the objects one after the other.
func TestEachObjectComesAfterWhatItNeeds(t *testing.T) {
	values, err := Values(nil, nil, []string{"mtls=strict"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := All(values, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for i, o := range objects {
		at[o.GetKind()+" "+o.GetName()] = i
		if o.GetKind() == "CustomResourceDefinition" {
			names, _, _ := unstructured.NestedString(o.Object, "spec", "names", "kind")
			at["kind "+names] = i
		}
	}
	if objects[0].GetKind() != "Namespace" || objects[0].GetLabels()["pod-security.kubernetes.io/enforce"] != "privileged" {
		t.Errorf("the first object is %v", objects[0])
	}
	for i, o := range objects {
		if crd, defined := at["kind "+o.GetKind()]; defined && crd > i {
			t.Errorf("%s %s before its definition", o.GetKind(), o.GetName())
		}
		if account, _, _ := unstructured.NestedString(o.Object, "spec", "template", "spec", "serviceAccountName"); account != "" && at["ServiceAccount "+account] > i {
			t.Errorf("%s %s before its account", o.GetKind(), o.GetName())
		}
	}
}
