package secrets

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// chaos does to a world whatever can happen to one.
type chaos struct {
	*world
	*rand.Rand
	accounts map[key]string // UID of those that there are
	failing  atomic.Int64   // writes that the API server is still to refuse
	watches  atomic.Int64
	next     int
}

var (
	chaosNamespaces = []string{"finance", "quiet", "third"}
	chaosAccounts   = []string{"payroll", "default", "web"}
)

func newChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{world: newWorld(t), Rand: rand.New(rand.NewPCG(seed, 0)), accounts: map[key]string{{Namespace: "finance", Name: "payroll"}: "u1", {Namespace: "quiet", Name: "default"}: "u2"}}
	c.world.events.Events = nil
	c.stop()
	c.client.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		w, err := c.client.Tracker().Watch(a.GetResource(), a.GetNamespace())
		c.watches.Add(1)
		return true, w, err
	})
	c.restart()
	if _, err := c.client.CoreV1().Namespaces().Create(context.Background(), namespace("third", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.client.PrependReactor("*", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if verb := a.GetVerb(); verb != "create" && verb != "update" && verb != "delete" || c.failing.Add(-1) < 0 {
			return false, nil, nil
		}
		return true, nil, errors.New("the API server is away")
	})
	return c
}

func (c *chaos) pick() key {
	return key{Namespace: chaosNamespaces[c.IntN(len(chaosNamespaces))], Name: chaosAccounts[c.IntN(len(chaosAccounts))]}
}

// step does one thing; it returns its name, to be printed.
func (c *chaos) step() string {
	ctx := context.Background()
	k := c.pick()
	secrets := c.client.CoreV1().Secrets(k.Namespace)
	switch n := c.IntN(12); n {
	case 0, 1:
		_ = secrets.Delete(ctx, mesh.SecretPrefix+k.Name, metav1.DeleteOptions{})
		return "delete Secret of " + k.String()
	case 2, 3, 4:
		s, err := secrets.Get(ctx, mesh.SecretPrefix+k.Name, metav1.GetOptions{})
		if err != nil {
			return "no Secret to spoil"
		}
		what := c.spoil(s)
		_, _ = secrets.Update(ctx, s, metav1.UpdateOptions{})
		return what + " of " + k.String()
	case 5, 6:
		return c.flipAccount(ctx, k)
	case 7:
		label := []string{"", "enabled", "disabled"}[c.IntN(3)]
		_, _ = c.client.CoreV1().Namespaces().Update(ctx, namespace(k.Namespace, map[string]string{mesh.SecretsLabel: label}), metav1.UpdateOptions{})
		return fmt.Sprintf("namespace %s is labelled %q", k.Namespace, label)
	case 8:
		d := time.Duration(c.IntN(40)-4) * time.Hour
		c.clock.SetTime(c.clock.Now().Add(d))
		return "the clock jumps by " + d.String()
	case 9:
		state := c.authority.Current()
		within := time.Duration(c.IntN(3)) * time.Hour
		if c.IntN(2) == 0 { // the old root leaves at once
			c.authority.Set(newState(c.t, c.clock))
			return "another root"
		}
		c.authority.Set(newSigner(c.t, c.clock, state, within))
		return "another signer, within " + within.String()
	case 10:
		c.failing.Store(int64(c.IntN(5)))
		return "writes fail"
	default:
		c.restart()
		return "killed and started"
	}
}

// restart kills the controller wherever it is. The fake API server, unlike the real one, loses what happens between a
// list and its watch, so nothing does.
func (c *chaos) restart() {
	c.stop()
	c.watches.Store(0)
	c.start()
	eventually(c.t, "the controller watches", func() bool { return c.watches.Load() == 3 })
}

func (c *chaos) flipAccount(ctx context.Context, k key) string {
	accounts := c.client.CoreV1().ServiceAccounts(k.Namespace)
	if _, ok := c.accounts[k]; ok {
		delete(c.accounts, k)
		_ = accounts.Delete(ctx, k.Name, metav1.DeleteOptions{})
		if c.IntN(2) == 0 {
			return "delete account " + k.String()
		}
	}
	c.next++
	c.accounts[k] = fmt.Sprint("r", c.next)
	_, _ = accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name, UID: types.UID(c.accounts[k])}}, metav1.CreateOptions{})
	return "new account " + k.String()
}

func (c *chaos) spoil(s *corev1.Secret) string {
	switch c.IntN(6) {
	case 0:
		s.Data = nil
		return "empty Secret"
	case 1:
		delete(s.Data, mesh.PrivateKeyKey)
		return "remove key"
	case 2:
		s.OwnerReferences = nil
		return "remove owner"
	case 3:
		s.Data = map[string][]byte{mesh.CertChainKey: s.Data[mesh.CertChainKey], mesh.PrivateKeyKey: s.Data[mesh.PrivateKeyKey], mesh.RootCertKey: []byte("rubbish")}
		return "spoil bundle"
	case 4:
		stranger := mustBuild(c.t, account(s.Namespace, s.Name[len(mesh.SecretPrefix):], "x"), newState(c.t, c.clock), dayLong)
		s.Data = stranger.Data
		return "put another CA's certificate"
	default:
		other := mustBuild(c.t, account("other", "other", "x"), c.authority.Current(), dayLong)
		s.Data = other.Data
		return "put another identity"
	}
}

// wrong returns what is not as it should be: an account without its sound Secret, or a Secret that should not be.
func (c *chaos) wrong() string {
	for _, nsName := range chaosNamespaces {
		ns, err := c.client.CoreV1().Namespaces().Get(context.Background(), nsName, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		for _, name := range chaosAccounts {
			uid, exists := c.accounts[key{Namespace: nsName, Name: name}]
			s := c.get(nsName, name)
			switch wanted := exists && ns.Labels[mesh.SecretsLabel] != "disabled"; {
			case !wanted && s != nil:
				return fmt.Sprintf("%s/%s should have no Secret", nsName, name)
			case wanted && s == nil:
				return fmt.Sprintf("%s/%s has no Secret", nsName, name)
			case wanted:
				_, reason := inspect(s, account(nsName, name, uid), view{State: c.authority.Current(), since: c.clock.Now()}, dayLong, c.clock.Now())
				if reason != "" && reason != SignerChanged {
					return fmt.Sprintf("Secret of %s/%s: %s", nsName, name, reason)
				}
			}
		}
	}
	return ""
}

// No sequence of events leaves an account without a valid Secret once things settle.
func TestWhateverHappensEveryAccountHasAValidSecretInTheEnd(t *testing.T) {
	first := rand.Uint64()
	for i, end := uint64(0), time.Now().Add(6*time.Second); i < 40 && (i < 3 || time.Now().Before(end)); i++ {
		seed := first + i
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			c := newChaos(t, seed)
			var history []string
			for range 4 {
				for range 5 + c.IntN(20) {
					history = append(history, c.step())
					if c.IntN(4) == 0 {
						time.Sleep(time.Duration(c.IntN(3)) * time.Millisecond) // the controller gets a word in, or not
					}
				}
				c.failing.Store(0)
				c.settle(history)
			}
		})
	}
}

// settle waits until all is well; meanwhile minutes pass. Where the clock has gone back by hours, so many minutes have to pass until a new
// root is valid, which takes a loaded machine its time.
func (c *chaos) settle(history []string) {
	c.t.Helper()
	wrong := ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if wrong = c.wrong(); wrong == "" {
			return
		}
		if c.clock.HasWaiters() {
			c.clock.Step(time.Minute)
		}
	}
	for _, line := range history {
		c.t.Log(line)
	}
	c.t.Fatal(wrong)
}
