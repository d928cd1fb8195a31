package nodexds

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// dialogue is what was said on one stream to Pilot: a state machine that does no I/O and knows no clock.
type dialogue struct {
	node     *Node
	parts    []*nodev1.Update // of an update of which more is to come
	received uint64           // the last update that Pilot knows to be applied
	asOf     uint64           // that by which Pilot knows the proxies
	pods     map[string]bool  // those that Pilot knows to be here
	proxies  map[string]told  // by the pod's UID
}

// told is what Pilot was told of a pod's proxy.
type told struct {
	proxy   *Proxy
	stalled *deltaxds.Stalled
	status  map[string]deltaxds.Status
}

// heldAtOnce is how many resources one message names that says what is here.
const heldAtOnce = 10000

// open begins a dialogue, with the messages that say what is here.
func (n *Node) open() (*dialogue, []*nodev1.Report) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := &dialogue{node: n, pods: map[string]bool{}, proxies: map[string]told{}}
	n.applied, n.alone = 0, false // Pilot counts anew
	n.cache.keep(func(uid string) bool { return n.pods[uid] != nil })
	first := &nodev1.Report{Module: n.module}
	for _, uid := range slices.Sorted(maps.Keys(n.pods)) {
		pod := n.pods[uid]
		d.pods[uid] = true
		first.Pods = append(first.Pods, &nodev1.Pod{Uid: uid, Name: pod.name, Layers: n.cache.words[uid]})
	}
	out := []*nodev1.Report{first}
	for _, held := range n.cache.held(heldAtOnce) {
		out[len(out)-1].More = true
		out = append(out, &nodev1.Report{Held: held})
	}
	return d, out
}

// take takes a message of Pilot. An update counts when it is complete.
func (d *dialogue) take(u *nodev1.Update) error {
	if len(d.parts) > 0 && d.parts[0].GetNumber() != u.GetNumber() {
		return fmt.Errorf("Pilot sends update %d before the end of %d", u.GetNumber(), d.parts[0].GetNumber())
	}
	d.parts = append(d.parts, u)
	if !u.GetMore() {
		d.node.apply(d.parts)
		d.parts = nil
	}
	return nil
}

// news is what Pilot waits for: that an update has been applied, and pods that have come or gone. Nil if there is nothing.
func (d *dialogue) news() *nodev1.Report {
	d.node.mu.Lock()
	defer d.node.mu.Unlock()
	out := &nodev1.Report{Received: d.node.applied}
	for uid := range d.pods {
		if d.node.pods[uid] == nil {
			delete(d.pods, uid)
			delete(d.proxies, uid)
			out.Pods = append(out.Pods, &nodev1.Pod{Uid: uid, Gone: true})
		}
	}
	for uid, pod := range d.node.pods {
		if !d.pods[uid] {
			d.pods[uid] = true
			out.Pods = append(out.Pods, &nodev1.Pod{Uid: uid, Name: pod.name})
		}
	}
	if len(out.GetPods()) == 0 && out.GetReceived() == d.received {
		return nil
	}
	d.received = out.GetReceived()
	return out
}

// progress is what has changed about proxies, or nil. What is applied is looked at before them, so what is said of them holds for that.
func (d *dialogue) progress() *nodev1.Report {
	d.node.mu.Lock()
	out := &nodev1.Report{Received: d.node.applied, AsOf: d.node.applied, UnknownKeys: slices.Sorted(maps.Keys(d.node.unknownKeys))}
	clear(d.node.unknownKeys)
	now := map[string]told{}
	for uid, pod := range d.node.pods {
		switch n := len(pod.proxies); {
		case !d.pods[uid]: // Pilot has not been told of the pod yet
		case n > 0:
			now[uid] = told{proxy: pod.proxies[n-1]}
		case pod.lost != nil:
			now[uid] = told{pod.lost.proxy, pod.lost.stalled, unsettled(pod.lost.status)}
		default:
			now[uid] = told{}
		}
	}
	d.node.mu.Unlock()
	for uid, is := range now {
		if is.proxy != nil && is.stalled == nil {
			is.status = is.proxy.stream.Status()
			delete(is.status, deltaxds.SecretType) // which is none of Pilot's
		}
		if change := d.proxies[uid].change(is); change != nil {
			change.Uid = uid
			out.Proxies = append(out.Proxies, change)
			d.proxies[uid] = is
		}
	}
	if len(out.GetProxies())+len(out.GetUnknownKeys()) == 0 && d.asOf == out.GetAsOf() {
		return nil
	}
	d.received, d.asOf = out.GetReceived(), out.GetAsOf()
	slices.SortFunc(out.GetProxies(), func(a, b *nodev1.Proxy) int { return cmp.Compare(a.GetUid(), b.GetUid()) })
	return out
}

// unsettled is the status of a proxy that may have anything by now, or nothing.
func unsettled(status map[string]deltaxds.Status) map[string]deltaxds.Status {
	out := maps.Clone(status)
	delete(out, deltaxds.SecretType)
	for url, st := range out {
		st.Pending = true
		out[url] = st
	}
	return out
}

// change says how a proxy differs from what was told of it; nil if it does not.
func (t told) change(now told) *nodev1.Proxy {
	out := &nodev1.Proxy{}
	if now.proxy != nil {
		out.NodeId, out.Connected = now.proxy.id, timestamppb.New(now.proxy.since)
	}
	if now.proxy != t.proxy {
		t.status = nil // the types are told anew
	}
	for _, url := range slices.Sorted(maps.Keys(now.status)) {
		st := now.status[url]
		if before, ok := t.status[url]; !ok || st != before {
			out.Types = append(out.Types, typeOf(url, st))
		}
	}
	if now.stalled != nil && now.stalled != t.stalled {
		out.Stalled = &nodev1.Stalled{Type: now.stalled.Type, Names: now.stalled.Names, Seconds: now.stalled.For.Seconds(), Waits: now.stalled.Waits}
	}
	if now.proxy == t.proxy && len(out.GetTypes()) == 0 && out.GetStalled() == nil {
		return nil
	}
	return out
}

func typeOf(url string, st deltaxds.Status) *nodev1.Type {
	return &nodev1.Type{
		Type: url, Subscribed: uint32(st.Subscribed), Sent: uint32(st.Sent), Acked: uint32(st.Acked), Nacked: uint32(st.Nacked),
		Pending: st.Pending, Refused: st.Resource, Reason: st.Error,
	}
}
