package revocation

import (
	"testing"
	"time"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func entry(change func(*Revocation)) Revocation {
	r := Revocation{Name: "r1", Identity: "spiffe://cluster.local/ns/a/sa/b", Created: now, Expires: now.Add(time.Hour)}
	if change != nil {
		change(&r)
	}
	return r
}

func TestListIsReadBackAsWritten(t *testing.T) {
	list := List{entry(nil), entry(func(r *Revocation) { r.Name, r.Serial, r.PodUID = "r2", "ab12", "u1" })}
	data, err := list.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(data)
	if err != nil || len(got) != 2 || got[1] != list[1] {
		t.Fatalf("%v %v", got, err)
	}
}

func TestDamagedListIsAnError(t *testing.T) {
	for name, raw := range map[string]string{
		"no JSON":           "{",
		"a foreign form":    `[{"name":"x","identity":"b"}]`,
		"a serial in upper": `[{"name":"x","identity":"spiffe://cluster.local/ns/a/sa/b","serial":"AB","created":"2026-01-01T00:00:00Z","expires":"2026-01-02T00:00:00Z"}]`,
		"an end before":     `[{"name":"x","identity":"spiffe://cluster.local/ns/a/sa/b","created":"2026-01-03T00:00:00Z","expires":"2026-01-02T00:00:00Z"}]`,
	} {
		if list, err := Parse(map[string]string{ConfigKey: raw}); err == nil {
			t.Errorf("%s: taken as %v", name, list)
		}
	}
	if list, err := Parse(nil); err != nil || len(list) != 0 {
		t.Errorf("nothing: %v %v", list, err)
	}
}

func TestWhoIsDenied(t *testing.T) {
	const id, other = "spiffe://cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/c"
	whole := List{entry(nil)}
	one := List{entry(func(r *Revocation) { r.Serial, r.PodUID = "ab", "u1" })}
	for name, c := range map[string]struct {
		list            List
		id, serial, uid string
		after           time.Duration
		want            bool
	}{
		"the identity":                {whole, id, "", "", 0, true},
		"any certificate of it":       {whole, id, "1", "u9", 0, true},
		"another identity":            {whole, other, "", "", 0, false},
		"after its end":               {whole, id, "", "", time.Hour, false},
		"the certificate":             {one, id, "ab", "", 0, true},
		"the pod that had it":         {one, id, "", "u1", 0, true},
		"another pod of the identity": {one, id, "cd", "u2", 0, false},
		"nothing known of the pod":    {one, id, "", "", 0, false},
	} {
		if _, got := c.list.Denies(c.id, c.serial, c.uid, now.Add(c.after)); got != c.want {
			t.Errorf("%s: denied %v", name, got)
		}
	}
}
