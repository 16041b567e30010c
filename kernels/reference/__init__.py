"""The operations of the kernels in plain torch: what runs where there is no kernel, and what kernels are compared with.

In: tensors on any device. Out: tensors on the same device. These modules define what each operation means.
"""
