package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Certificates live for a minute in these tests, so each is replaced about every thirty seconds.
var (
	soak     = flag.Duration("soak", time.Minute, "how long the rotation tests keep traffic going")
	requests = flag.Int("requests", 20000, "how many requests each of them makes at least")
)

// traffic is what one kind of client has met.
type traffic struct {
	name   string
	result sample.LoadResult
	err    error
}

// kinds are HTTP and TCP, over kept and new connections.
var kinds = []struct {
	name string
	args func(s *claims.Scene) []string
}{
	{"HTTP, kept connections", func(s *claims.Scene) []string {
		return []string{"load", "http://payroll." + s.Namespace + "/accounts/42"}
	}},
	{"HTTP, new connections", func(s *claims.Scene) []string {
		return []string{"load", "http://payroll." + s.Namespace + "/accounts/42", "--new-connections"}
	}},
	{"TCP, kept connections", func(s *claims.Scene) []string { return []string{"tcpload", "payroll." + s.Namespace + ":9000"} }},
	{"TCP, new connections", func(s *claims.Scene) []string {
		return []string{"tcpload", "payroll." + s.Namespace + ":9000", "--new-connections"}
	}},
}

// underTraffic does something while requests of all kinds go on, for as long as -soak says and as do takes, and says how
// many there were. One that fails is an error. On a slow machine they go on after that until there were as many as -requests says.
func underTraffic(ctx context.Context, s *claims.Scene, do func(context.Context) error) (string, error) {
	began := time.Now()
	total, err := during(ctx, s, *soak, do)
	for err == nil && total < *requests && time.Since(began) < 4**soak {
		var more int
		more, err = during(ctx, s, *soak/4, func(context.Context) error { return nil })
		total += more
	}
	if err == nil && total < *requests {
		err = fmt.Errorf("only %d requests in %s, %d are demanded", total, time.Since(began).Round(time.Second), *requests)
	}
	return fmt.Sprintf("%d requests over HTTP and TCP, kept and new connections, in %s: 0 failed", total, time.Since(began).Round(time.Second)), err
}

// during does something while requests of all kinds go on, for some time at least, and returns how many there were. One
// that fails is an error. A client's connections are kept for a quarter of the time, and are new then.
func during(ctx context.Context, s *claims.Scene, least time.Duration, do func(context.Context) error) (int, error) {
	piece := (least / 4).Round(time.Second)
	var results []traffic
	var mu sync.Mutex
	var wg sync.WaitGroup
	ended := make(chan struct{})
	began := time.Now()
	for _, kind := range kinds {
		wg.Go(func() {
			t := traffic{name: kind.name, result: sample.LoadResult{Outcomes: map[string]int{}}}
			for over := false; !over && t.err == nil; {
				select {
				case <-ended:
					over = time.Since(began) >= least-piece // one more piece with what is in force now
				default:
				}
				var part sample.LoadResult
				part, t.err = lab.ExecJSON[sample.LoadResult](ctx, s.Lab, s.Namespace, "account-auditor", "client",
					append(append([]string{"sample"}, kind.args(s)...), "--duration="+piece.String(), "--interval=8ms")...)
				t.result.Requests += part.Requests
				for outcome, n := range part.Outcomes {
					t.result.Outcomes[outcome] += n
				}
				t.result.Errors = append(t.result.Errors, part.Errors...)
			}
			mu.Lock()
			defer mu.Unlock()
			results = append(results, t)
		})
	}
	err := do(ctx)
	close(ended)
	wg.Wait()
	total := 0
	for _, t := range results {
		total += t.result.Requests
		if n := t.result.Outcomes["200"]; t.err == nil && (n != t.result.Requests || n == 0) {
			t.err = fmt.Errorf("outcomes %v of %d: %v", t.result.Outcomes, t.result.Requests, t.result.Errors)
		}
		if t.err != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", t.name, t.err))
		}
	}
	return total, err
}

func TestCertificatesRotateAllTheTimeWithoutAFailedRequest(t *testing.T) {
	proveFor(t, "soak", 4**soak+5*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		serials := map[string]bool{}
		happened, err := underTraffic(ctx, s, func(ctx context.Context) error {
			for end := time.Now().Add(*soak); time.Now().Before(end); {
				h, err := serialOf(ctx, s, "payroll")
				if err != nil {
					return err
				}
				serials[h] = true
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(5 * time.Second): // a sample, not a wait for something
				}
			}
			return nil
		})
		if want := max(2, int(*soak/(40*time.Second))); err == nil && len(serials) < want {
			err = fmt.Errorf("payroll had %d certificates in %s, want %d at least", len(serials), *soak, want)
		}
		return fmt.Sprintf("payroll had %d certificates; %s", len(serials), happened), err
	})
}

func serialOf(ctx context.Context, s *claims.Scene, app string) (string, error) {
	out, err := s.Meshctl(ctx, "identity", "-n", s.Namespace, "deploy/"+app, "-o", "json")
	if err != nil {
		return "", err
	}
	var held struct {
		Serial string `json:"serial"`
	}
	return held.Serial, json.Unmarshal(out, &held)
}

// ca is the part of `meshctl ca status -o json` that is looked at here.
type ca struct {
	Signer struct {
		KeyID string `json:"keyID"`
	} `json:"signer"`
	Origin   string                   `json:"origin"`
	Roots    []struct{ KeyID string } `json:"roots"`
	Sequence uint64                   `json:"sequence"`
	Rotation struct {
		Phase string `json:"phase"`
		Last  string `json:"last"`
	} `json:"rotation"`
	Waits []struct{ For, What string } `json:"waits"`
}

func caStatus(ctx context.Context) (ca, error) {
	var now ca
	out, err := cluster.Meshctl(ctx, "ca", "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal(out, &now)
	}
	return now, err
}

const rotationLimit = 4 * time.Minute

// startRotation starts a root rotation when a Citadel leads, which after an installation takes some seconds.
func startRotation(ctx context.Context) error {
	return lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		_, err := cluster.Meshctl(ctx, "ca", "rotate", "--detach")
		if err != nil && !strings.Contains(err.Error(), "leads at the moment") {
			return lab.Stop(err)
		}
		return err
	})
}

// documentedRotation rotates the root by the command that the documentation shows, and returns the phases of which it tells until it ends.
func documentedRotation(ctx context.Context) (map[string]bool, error) {
	all, err := blocks()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(b fenced) bool { return b.name() == documentOfRotation })
	if i < 0 {
		return nil, fmt.Errorf("no document has %q any longer", documentOfRotation)
	}
	command, _, _ := strings.Cut(strings.TrimPrefix(all[i].text, "$ meshctl "), "\n")
	seen := map[string]bool{}
	err = lab.PollFor(ctx, rotationLimit, func(ctx context.Context) error {
		out, err := cluster.Meshctl(ctx, strings.Fields(command)...)
		if err != nil && strings.Contains(err.Error(), "leads at the moment") {
			return err
		}
		for line := range strings.Lines(string(out)) {
			if phase, _, ok := strings.Cut(line, ", bundle "); ok {
				seen[phase] = true
			}
		}
		if err == nil && !strings.Contains(string(out), "the last one completed") {
			err = fmt.Errorf("`meshctl %s` ended with %q", command, out)
		}
		if err != nil {
			return lab.Stop(err)
		}
		return nil
	})
	return seen, err
}

// rotated waits until the rotation that is under way has ended, and returns the phases that were seen.
func rotated(ctx context.Context, before ca) (map[string]bool, error) {
	seen := map[string]bool{}
	err := lab.PollFor(ctx, rotationLimit, func(ctx context.Context) error {
		now, err := caStatus(ctx)
		if err != nil {
			return err
		}
		if now.Rotation.Phase != "" {
			seen[now.Rotation.Phase] = true
			return fmt.Errorf("%s waits for %v", now.Rotation.Phase, now.Waits)
		}
		if now.Signer.KeyID == before.Signer.KeyID || len(now.Roots) != 1 || now.Roots[0].KeyID == before.Roots[0].KeyID {
			return errors.New("the old root is still there")
		}
		return nil
	})
	return seen, err
}

// The new root is also in the SPIFFE bundle, at its endpoint, and in the cluster trust bundle.
func TestRootRotatesWithoutAFailedRequest(t *testing.T) {
	proveFor(t, "root", rotationLimit+4**soak+2*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		before, err := caStatus(ctx)
		if err != nil {
			return "", err
		}
		bundleBefore, err := publishedBundle(ctx)
		if err != nil {
			return "", err
		}
		var seen map[string]bool
		began := time.Now()
		var took time.Duration
		happened, err := underTraffic(ctx, s, func(ctx context.Context) error {
			var err error
			if seen, err = documentedRotation(ctx); err == nil {
				_, err = rotated(ctx, before)
			}
			took = time.Since(began)
			return err
		})
		if err != nil {
			return "", err
		}
		if !seen["publishing"] || !seen["signing"] {
			return "", fmt.Errorf("the command told of the phases %v alone", slices.Sorted(maps.Keys(seen)))
		}
		bundleAfter, err := publishedBundle(ctx)
		if err != nil {
			return "", err
		}
		if bundleAfter.sequence <= bundleBefore.sequence || bundleAfter.roots == bundleBefore.roots {
			return "", fmt.Errorf("the published bundle was %+v before and is %+v after", bundleBefore, bundleAfter)
		}
		return fmt.Sprintf("a new root after %s; %s", took.Round(time.Second), happened), nil
	})
}

// Citadel and the agents are killed at random moments of a root rotation, this one to an intermediate of another CA that is
// plugged in: it comes to its end all the same, and nobody is cut off.
func TestRootRotationSurvivesKilledCitadelsAndAgents(t *testing.T) {
	proveFor(t, "root-faults", rotationLimit+4**soak+3*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		before, err := caStatus(ctx)
		if err != nil {
			return "", err
		}
		t.Cleanup(func() {
			if err := unplug(context.WithoutCancel(ctx)); err != nil {
				t.Error(err)
			}
		})
		seed := uint64(time.Now().UnixNano())
		random := rand.New(rand.NewPCG(seed, 0))
		kills := 0
		happened, err := underTraffic(ctx, s, func(ctx context.Context) error {
			if err := plugIn(ctx); err != nil {
				return err
			}
			for {
				now, err := caStatus(ctx)
				if err == nil && now.Rotation.Phase == "" && now.Signer.KeyID != before.Signer.KeyID {
					break
				}
				if kills < 6 {
					component := []string{"citadel", "agent"}[random.IntN(2)]
					if err := killOne(ctx, component, random); err != nil {
						return err
					}
					kills++
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(time.Duration(500+random.IntN(4000)) * time.Millisecond): // chance decides where it is hit
				}
			}
			if _, err := rotated(ctx, before); err != nil {
				return err
			}
			now, err := caStatus(ctx)
			if err == nil && now.Origin != "plugged-in" {
				err = fmt.Errorf("the CA is %s, not plugged-in", now.Origin)
			}
			return err
		})
		if err == nil && kills == 0 {
			err = errors.New("the rotation was over before anything was killed")
		}
		return fmt.Sprintf("%d kills (seed %d); %s", kills, seed, happened), err
	})
}

// killOne deletes one pod of a component without grace and does not wait for another.
func killOne(ctx context.Context, component string, random *rand.Rand) error {
	pods := cluster.CoreV1().Pods(mesh.Namespace)
	list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + component})
	if err != nil || len(list.Items) == 0 {
		return err
	}
	return pods.Delete(ctx, list.Items[random.IntN(len(list.Items))].Name, *metav1.NewDeleteOptions(0))
}
