package world

import (
	"context"
	"errors"
	"fmt"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// Remove removes everything that bears the label, of this run or an earlier one, and returns when it is gone. To delete thousands of pods takes a
// busy API server longer than it gives a request, so what fails is tried again.
func (w *World) Remove(ctx context.Context) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, time.Second, removeWithin, true, func(ctx context.Context) (bool, error) {
		last = w.remove(ctx)
		return last == nil, nil
	})
	if err != nil && last != nil {
		return last
	}
	return err
}

const removeWithin = 15 * time.Minute

func (w *World) remove(ctx context.Context) error {
	list, now := meta.ListOptions{LabelSelector: selector}, int64(0)
	at := meta.DeleteOptions{GracePeriodSeconds: &now} // no kubelet would end these pods gracefully
	namespaces, err := w.kube.CoreV1().Namespaces().List(ctx, list)
	if err != nil {
		return fmt.Errorf("finding what to remove: %w", err)
	}
	err = each(ctx, len(namespaces.Items), func(ctx context.Context, i int) error {
		name := namespaces.Items[i].Name
		if err := w.kube.CoreV1().Pods(name).DeleteCollection(ctx, at, meta.ListOptions{}); err != nil {
			return err
		}
		return w.kube.CoreV1().Namespaces().Delete(ctx, name, meta.DeleteOptions{})
	})
	err = errors.Join(err, w.kube.CoreV1().Nodes().DeleteCollection(ctx, at, list),
		w.kube.CoordinationV1().Leases(leaseNamespace).DeleteCollection(ctx, at, list))
	if err != nil {
		return fmt.Errorf("removing the load test's objects: %w", err)
	}
	return w.awaitGone(ctx, list)
}

func (w *World) awaitGone(ctx context.Context, list meta.ListOptions) error {
	left := 0
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, removeWithin, true, func(ctx context.Context) (bool, error) {
		namespaces, err := w.kube.CoreV1().Namespaces().List(ctx, list)
		if err != nil {
			return false, err
		}
		nodes, err := w.kube.CoreV1().Nodes().List(ctx, list)
		if err != nil {
			return false, err
		}
		left = len(namespaces.Items) + len(nodes.Items)
		return left == 0, nil
	})
	if err != nil {
		return fmt.Errorf("%d namespaces and nodes of the load test are still there: %w", left, err)
	}
	return nil
}
