package world

import (
	"context"
	"fmt"
	"time"

	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	leaseNamespace = "kube-node-lease"
	leaseSeconds   = 40
	renewal        = 10 * time.Second
)

func nodeName(i int) string { return fmt.Sprintf("xdsload-node-%d", i) }

// CreateNodes makes the nodes, which live while KeepAlive runs. It comes first.
func (w *World) CreateNodes(ctx context.Context) error {
	if err := each(ctx, w.Nodes, w.createNode); err != nil {
		return fmt.Errorf("making nodes: %w", err)
	}
	return nil
}

// createNode makes a node that nothing else is scheduled to, and that the controllers believe is alive. As it lacks the label with the
// operating system, which a kubelet writes, it gets none of the mesh's own agents, which would be Pending for ever.
func (w *World) createNode(ctx context.Context, i int) error {
	seconds, holder, now := int32(leaseSeconds), nodeName(i), meta.NowMicro()
	_, err := w.alive.CoordinationV1().Leases(leaseNamespace).Create(ctx, &coordination.Lease{
		ObjectMeta: named(leaseNamespace, holder),
		Spec:       coordination.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}, meta.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = w.kube.CoreV1().Nodes().Create(ctx, &core.Node{
		ObjectMeta: named("", holder),
		Spec:       core.NodeSpec{Unschedulable: true, Taints: []core.Taint{{Key: label, Value: value, Effect: core.TaintEffectNoSchedule}}},
	}, meta.CreateOptions{})
	if err != nil {
		return err
	}
	patch, err := statusPatch(core.NodeStatus{Conditions: []core.NodeCondition{{Type: core.NodeReady, Status: core.ConditionTrue,
		Reason: "Simulated", LastHeartbeatTime: meta.Now(), LastTransitionTime: meta.Now()}}})
	if err != nil {
		return err
	}
	_, err = w.kube.CoreV1().Nodes().PatchStatus(ctx, holder, patch)
	return err
}

// KeepAlive renews the nodes' leases until ctx ends: pods of a node that has died are not endpoints.
func (w *World) KeepAlive(ctx context.Context) error {
	tick := time.NewTicker(renewal)
	defer tick.Stop()
	for {
		if err := each(ctx, w.Nodes, w.renew); err != nil && ctx.Err() == nil {
			return fmt.Errorf("keeping the nodes alive: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (w *World) renew(ctx context.Context, i int) error {
	leases := w.alive.CoordinationV1().Leases(leaseNamespace)
	lease, err := leases.Get(ctx, nodeName(i), meta.GetOptions{})
	if err != nil {
		return err
	}
	now := meta.NowMicro()
	lease.Spec.RenewTime = &now
	_, err = leases.Update(ctx, lease, meta.UpdateOptions{})
	return err
}
