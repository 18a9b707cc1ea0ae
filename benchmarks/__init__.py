"""The benchmark suite: `rnnfast bench`.

Named shapes from real work, our layers and their peers side by side, the machine's limits measured in the same run.
The wheel carries this folder as `rnnfast.benchmarks`; from above: `suite` runs `layers`, `language_model`, `streaming`,
`echo_state` and `processes` and hands `results` to `report`, `plots` and `targets`.
"""
