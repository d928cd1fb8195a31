package inject

import (
	"cmp"
	"math"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// guaranteedCPU is what the proxy of a Guaranteed pod has, if nobody says otherwise: such a pod is to get no less than it may use.
const guaranteedCPU = "250m"

// proxyResources are the installation's, the pod's choices, and what its namespace's LimitRanges demand. The proxy of a Guaranteed pod may use what it requests, so that
// the pod stays Guaranteed.
func proxyResources(pod *core.Pod, c Config, ch choices, ranges []core.LimitRangeItem) core.ResourceRequirements {
	pick := func(chosen *resource.Quantity, otherwise string) resource.Quantity {
		if chosen != nil {
			return *chosen
		}
		return resource.MustParse(otherwise)
	}
	r := limits(pick(ch.cpu, c.ProxyCPU), pick(ch.cpuLimit, c.ProxyCPUMax), pick(ch.memory, c.ProxyMemory), pick(ch.memoryLimit, c.ProxyMemoryMax))
	if guaranteed(pod) {
		cpu := pick(cmp.Or(ch.cpuLimit, ch.cpu), guaranteedCPU)
		memory := r.Limits[core.ResourceMemory]
		r = limits(cpu, cpu, memory, memory)
	}
	return fit(r, ranges)
}

// initResources are those of the init container of redirection, which ends at once.
func initResources(pod *core.Pod, ranges []core.LimitRangeItem) core.ResourceRequirements {
	q := resource.MustParse
	r := limits(q("10m"), q("100m"), q("16Mi"), q("64Mi"))
	if guaranteed(pod) {
		r.Requests = r.Limits.DeepCopy()
	}
	return fit(r, ranges)
}

// limits are requests and limits, where who asks for more than the limit gets it.
func limits(cpu, cpuMax, memory, memoryMax resource.Quantity) core.ResourceRequirements {
	if cpuMax.Cmp(cpu) < 0 {
		cpuMax = cpu.DeepCopy()
	}
	if memoryMax.Cmp(memory) < 0 {
		memoryMax = memory.DeepCopy()
	}
	return core.ResourceRequirements{
		Requests: core.ResourceList{core.ResourceCPU: cpu, core.ResourceMemory: memory},
		Limits:   core.ResourceList{core.ResourceCPU: cpuMax, core.ResourceMemory: memoryMax},
	}
}

// guaranteed reports whether a pod is of the QoS class Guaranteed: each container may use just what it requests (a limit alone is a request, too).
func guaranteed(pod *core.Pod) bool {
	for _, list := range [][]core.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			for _, name := range []core.ResourceName{core.ResourceCPU, core.ResourceMemory} {
				limit, limited := c.Resources.Limits[name]
				request, requested := c.Resources.Requests[name]
				if !limited || limit.IsZero() || requested && request.Cmp(limit) != 0 {
					return false
				}
			}
		}
	}
	return len(pod.Spec.Containers) > 0
}

// fit changes resources as little as LimitRanges of containers demand: a bound that is passed is kept to, and of a limit that is too many times the request, the request grows.
func fit(r core.ResourceRequirements, ranges []core.LimitRangeItem) core.ResourceRequirements {
	for _, item := range ranges {
		if item.Type != core.LimitTypeContainer {
			continue
		}
		for _, name := range []core.ResourceName{core.ResourceCPU, core.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			if most, ok := item.Max[name]; ok && limit.Cmp(most) > 0 {
				limit = most.DeepCopy()
			}
			if least, ok := item.Min[name]; ok && request.Cmp(least) < 0 {
				request = least.DeepCopy()
			}
			if request.Cmp(limit) > 0 {
				if most, ok := item.Max[name]; ok && request.Cmp(most) > 0 {
					request = most.DeepCopy()
				} else {
					limit = request.DeepCopy()
				}
			}
			if ratio, ok := item.MaxLimitRequestRatio[name]; ok && ratio.Sign() > 0 {
				least := math.Ceil(float64(limit.MilliValue()) / ratio.AsApproximateFloat64())
				if float64(request.MilliValue()) < least {
					request = atLeast(name, least)
				}
			}
			r.Requests[name], r.Limits[name] = request, limit
		}
	}
	return r
}

// atLeast is a quantity of so many thousandths: of CPU, or of a byte, of which there are only whole ones.
func atLeast(name core.ResourceName, thousandths float64) resource.Quantity {
	if name == core.ResourceCPU {
		return *resource.NewMilliQuantity(int64(thousandths), resource.DecimalSI)
	}
	return *resource.NewQuantity(int64(math.Ceil(thousandths/1000)), resource.BinarySI)
}

// workers are the proxy's worker threads: what the pod chooses, or one for each CPU that it may use, as far as the installation gives a proxy any.
func workers(c Config, ch choices, limit resource.Quantity) int {
	if ch.workers > 0 {
		return ch.workers
	}
	return max(1, min(c.ProxyWorkers, int(math.Ceil(float64(limit.MilliValue())/1000))))
}
