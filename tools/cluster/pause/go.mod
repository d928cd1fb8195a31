// The program of a pod's sandbox container.
module github.com/bulwark-mesh/bulwark/tools/cluster/pause

go 1.26.0
