package secrets

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/client-go/util/workqueue"
)

func TestOrderIsByRankThenByTheEndOfTheCertificate(t *testing.T) {
	o := newOrder()
	q := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[key]{Queue: o})
	defer q.ShutDown()
	now := time.Now()
	ask := func(name string, r rank, end time.Time) {
		o.ask(key{Name: name}, r, end)
		q.Add(key{Name: name})
	}
	for i := range 5 {
		ask(fmt.Sprint("bulk", i), routine, now.Add(time.Hour+time.Duration(i)))
	}
	ask("found", missing, time.Time{})
	ask("soon", routine, now.Add(time.Minute))
	ask("bulk3", routine, now.Add(2*time.Hour)) // later than asked before; the earlier turn stays
	ask("bulk4", urgent, time.Time{})           // damaged while it waited
	ask("new", urgent, time.Time{})
	ask("unknown", look, time.Time{})
	for _, want := range []string{"bulk4", "new", "unknown", "found", "soon", "bulk0", "bulk1", "bulk2", "bulk3"} {
		k, _ := q.Get()
		if k.Name != want {
			t.Fatalf("%s, want %s", k.Name, want)
		}
		q.Done(k)
		o.done(k)
	}
	if o.Len() != 0 || len(o.asked) != 0 || len(o.running) != 0 || len(o.place) != 0 {
		t.Fatalf("something stays behind: %+v", o)
	}
}
