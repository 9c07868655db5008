"""The breaks that ``bench.breaks`` makes: errors as people make them, at least one in every room of the house.

A row names the file, the text that stands there exactly once, what stands there after the break, and the cheapest
tests that should notice it: files, and words of pytest's -k.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """``text`` of ``file`` becomes ``wrong``; ``tests`` (paths with spaces between), chosen by ``words``, notice it."""

    name: str
    file: str
    text: str
    wrong: str
    tests: str
    words: str = ""


# fmt: off
FLOW = (
    Break("velocity-sign", "flux2_train/flow/target.py", "return noise - x0", "return x0 - noise",
          "tests/test_flow.py", "path_ends"),
    Break("shift-direction", "flux2_train/flow/timesteps.py", "factor = math.exp(mu)", "factor = math.exp(-mu)",
          "tests/test_flow.py", "shift_matches"),
    Break("wavelet-padding-axes", "flux2_train/flow/loss.py", "padded = F.pad(d, (0, width % 2, 0, height % 2))",
          "padded = F.pad(d, (0, height % 2, 0, width % 2))", "tests/test_losses.py", "odd_sizes"),
    Break("projection-ignored", "flux2_train/flow/guidance.py", "return base + scale.to(target)",
          "return unconditional + scale.to(target)", "tests/test_losses.py", "projection_leaves"),
    Break("outside-not-normalised", "flux2_train/flow/preservation.py", "1 - m.float() / m.max()", "1 - m.float()",
          "tests/test_losses.py", "outside"),
    Break("strata-of-first-round", "flux2_train/flow/uniforms.py", "_order(strata, seed, draw // strata)",
          "_order(strata, seed, first // strata)", "tests/test_times.py", "strata"),
    Break("masked-weight-ignored", "flux2_train/flow/weighting.py", "m.to(full) * w for", "m.to(full) for",
          "tests/test_weighting.py", "masks_and_weights"),
)
ADAPTERS = (
    Break("modulation-halves", "flux2_train/adapters/names.py", "Place(name, 0, out, swapped=True)",
          "Place(name, 0, out)", "tests/test_formats.py", "swaps_the_halves"),
    Break("rslora-in-header", "flux2_train/adapters/peft_config.py",
          "alpha / (math.sqrt(rank) if self.root else rank)", "alpha / rank",
          "tests/test_formats.py", "header_only"),
    Break("magnitude-dtype", "flux2_train/adapters/write.py", "torch.float32 if exact else dtype", "dtype",
          "tests/test_formats.py", "magnitudes_stay_exact"),
    Break("dora-norm", "flux2_train/adapters/dora.py", "weight if part.of_base else weight + part.delta()",
          "weight + part.delta() if part.of_base else weight", "tests/test_plain.py", "papers_formula"),
    Break("lokr-scale", "flux2_train/adapters/parts.py", ".flatten(-2) * self.scale", ".flatten(-2)",
          "tests/test_parts.py", "contribution"),
    Break("dropout-without-step", "flux2_train/adapters/live.py", "torch.manual_seed(seed * 1_000_003 + step)",
          "torch.manual_seed(seed)", "tests/test_adapters.py", "dropout_acts"),
    Break("start-without-scale", "flux2_train/adapters/start.py", "part.down1 * factor", "part.down1",
          "tests/test_adapters.py", "going_on_gives"),
    Break("rank-override-alpha", "flux2_train/adapters/targets.py", "alpha * own / rank", "alpha",
          "tests/test_targets.py", "last_fitting"),
)
HOST = (
    Break("training-flag-stays", "flux2_train/host/borrowed/borrow.py",
          "    finally:\n        comfy.model_management.in_training = before", "    finally:\n        pass",
          "tests/test_borrow.py", "every_way_out"),
    Break("streams-not-copied", "flux2_train/host/borrowed/recompute.py", "copies = [stream.clone() for stream in streams]",
          "copies = list(streams)", "tests/test_gradients.py", "checkpointing_changes"),
    Break("awq-scale-forgotten", "flux2_train/host/borrowed/frozen.py", "plain = plain * scale.to(plain)",
          "plain = plain.clone()", "tests/test_reference.py", "every_adapter and awq"),
    Break("nvfp4-largest", "flux2_train/formats.py", "largest=448.0 * 6.0", "largest=448.0",
          "tests/test_quantise.py", "slices"),
    Break("auto-mode-swapped", "flux2_train/host/lora/apply.py", "BYPASS if is_quantised(model) else MERGED",
          "MERGED if is_quantised(model) else BYPASS", "tests/test_lora.py", "auto_bypasses"),
    Break("bypass-keeps-inference", "flux2_train/host/lora/apply.py",
          "where = (x.device, x.dtype, torch.is_inference_mode_enabled())", "where = (x.device, x.dtype)",
          "tests/test_borrow.py", "has_painted"),
    Break("merge-strength", "flux2_train/host/lora/merge.py",
          "weight.add_(dora.change(change.parts[name], weight), alpha=change.strength)",
          "weight.add_(dora.change(change.parts[name], weight))", "tests/test_merge.py", "at_their_strengths"),
    Break("batch-norm-not-restored", "flux2_train/host/encoding/encode.py",
          "    finally:\n        module.bn = norm", "    finally:\n        pass",
          "tests/test_encode.py", "statistics_stay"),
    Break("distilled-guidance", "flux2_train/host/sampling/sample.py",
          "1.0 if identify.variant_of(model) == DISTILLED else value", "value",
          "tests/test_sampling.py", "guidance_and_steps"),
    Break("patched-encoder-named", "flux2_train/host/describe.py", " if path and not patcher.patches else",
          " if path else", "tests/test_job.py", "encoder_with_patches"),
    Break("deferred-left-loaded", "flux2_train/host/loading/deferred.py", "if not before:", "if before:",
          "tests/test_deferred.py", "text_encoder_comes_and_goes"),
    Break("path-leaves-folder", "flux2_train/host/loading/files.py",
          'if not named.parts or ".." in named.parts:\n        raise UserError(f"{name!r} is no file name;',
          'if not named.parts:\n        raise UserError(f"{name!r} is no file name;',
          "tests/test_prompts.py", "bounded"),
    Break("last-shard", "flux2_train/host/loading/shards.py", "range(1, total + 1)", "range(1, total)",
          "tests/test_shards.py", "others_are_found"),
    Break("pinned-budget", "flux2_train/host/borrowed/streamed.py", "budget -= size if chosen[-1] else 0", "budget -= size",
          "tests/test_retry.py", "pinned_memory_is_given"),
    Break("certificate-of-any", "flux2_train/host/lora/certificate.py",
          "self.matched == self.total and self.error <= self.tolerance",
          "self.matched == self.total or self.error <= self.tolerance",
          "tests/test_certificate.py", "what_is_wrong"),
)
MEMORY = (
    Break("host-memory-unchecked", "flux2_train/planning/planner.py",
          " and self.estimate.host_peak <= machine.ram", "", "tests/test_planner.py", "cannot_fit"),
    Break("ring-fetched-again", "flux2_train/planning/estimate.py", "2 * max(0, streamed - staying)", "2 * streamed",
          "tests/test_planner.py", "traffic_counts"),
    Break("ring-written-too-soon", "flux2_train/streaming/ring.py", "_Slot(buffer, free=begin)", "_Slot(buffer)",
          "tests/test_streaming.py", "earlier_kernels"),
    Break("offload-dtype", "flux2_train/streaming/saved_tensors.py", "torch.empty(tensor.shape, dtype=tensor.dtype, ",
          "torch.empty(tensor.shape, ", "tests/test_offload.py", "dtype"),
)
RUN = (
    Break("accumulate-ignored", "flux2_train/train/trainer.py", "config.batch * config.accumulate * self.accelerator",
          "config.batch * self.accelerator", "tests/test_resume.py", "other_batches"),
    Break("draws-not-given-back", "flux2_train/train/trainer.py", "                self.drawn = drawn\n", "",
          "tests/test_resume_endings.py", "cut_in_the_middle_leaves"),
    Break("preservation-every", "flux2_train/train/objective.py", "(step - 1) % self.config.preservation_options.every",
          "step % self.config.preservation_options.every", "tests/test_objective.py", "every_nth"),
    Break("round-robin-begins-anew", "flux2_train/train/timesteps.py", "for i in range(first, first + count)]",
          "for i in range(count)]", "tests/test_times.py", "times_are_drawn"),
    Break("other-data-resumed", "flux2_train/runs/resume.py", "if about.dataset != trainer.dataset.fingerprint:",
          "if not about.dataset:", "tests/test_resume.py", "another_data_set"),
    Break("checksum-not-chained", "flux2_train/runs/checkpoints.py", ".view(torch.uint8).numpy(), crc)",
          ".view(torch.uint8).numpy())", "tests/test_checkpoints.py", "flipped_bit"),
    Break("best-is-pruned", "flux2_train/runs/checkpoint_writer.py",
          "best = self.best_path() if self.config.keep_best else None", "best = None",
          "tests/test_checkpoints.py", "best_stays"),
    Break("due-checkpoint-forgotten", "flux2_train/runs/checkpoint_writer.py", "self.waiting = self.waiting or (",
          "self.waiting = (", "tests/test_checkpoints.py", "is_due_waits"),
    Break("ema-warmup", "flux2_train/train/ema.py", "self.steps < self.warmup", "self.steps <= self.warmup",
          "tests/test_guards.py", "published_values"),
    Break("warmup-first-step", "flux2_train/train/schedules.py", "(step + 1) / warmup", "step / warmup",
          "tests/test_optimizers.py", "warm_up"),
    Break("block-rate-absolute", "flux2_train/train/optimizers.py", '"lr": group["lr"] * value', '"lr": value',
          "tests/test_optimizers.py", "block_rates_split"),
    Break("dead-one-step-late", "flux2_train/train/guards.py", "steps >= PATIENCE", "steps > PATIENCE",
          "tests/test_guards.py", "adapter_is_dead"),
    Break("run-folder-shared", "flux2_train/runs/folder.py", "(runs / chosen).mkdir()",
          "(runs / chosen).mkdir(exist_ok=True)", "tests/test_run_folder.py", "at_once"),
    Break("tenth-run-before-second", "flux2_train/runs/folder.py", "key=lambda path: int(found[path][1] or 1)",
          'key=lambda path: found[path][1] or "1"', "tests/test_run_folder.py", "last_run_of"),
    Break("old-stop-request", "flux2_train/runs/folder.py", "            self.stop.unlink(missing_ok=True)\n", "",
          "tests/test_run_folder.py", "old_request"),
    Break("retry-keeps-gradients", "flux2_train/train/out_of_memory.py",
          "            undo()\n            _restore(states)", "            _restore(states)",
          "tests/test_retry.py", "repeated_bit_by_bit and backward"),
    Break("log-tags-swapped", "flux2_train/runs/logs.py", '"loss/held out" if held_out else "loss/validation"',
          '"loss/validation" if held_out else "loss/held out"', "tests/test_logs.py", "tensorboard_reads"),
    Break("no-last-preview", "flux2_train/settings/previews.py", "return step == total or bool(self.every and",
          "return bool(self.every and", "tests/test_previews.py", "when_previews"),
    Break("images-against-last", "flux2_train/runs/image_files.py", "read_losses(min(", "read_losses(max(",
          "tests/test_watch.py", "files_name"),
    Break("rich-is-noise", "flux2_train/evaluate/verdicts.py", " and _log(m.unknown) > far", "",
          "tests/test_watch.py", "rich_picture"),
    Break("regularisation-held-out", "flux2_train/evaluate/fixed_noise.py",
          " if not samples.sources[i.source].is_reg", "", "tests/test_watch.py", "regularisation_images"),
)
DATA = (
    Break("face-beyond-edge", "flux2_train/data/crops.py", "min(max(face[0] - w / 2, 0.0), free_x)",
          "max(face[0] - w / 2, 0.0)", "tests/test_crops.py", "faces_are_centred"),
    Break("trigger-word-edge", "flux2_train/data/captions.py", r'rf"(?<!\w){re.escape(word)}(?!\w)"',
          r'rf"\b{re.escape(word)}\b"', "tests/test_captions.py", "test_trigger"),
    Break("dropped-class-caption", "flux2_train/data/samples.py",
          "text, class_text = source.dropout_caption, source.dropout_class_caption", "text = source.dropout_caption",
          "tests/test_weighting.py", "captions_are_dropped"),
    Break("resumed-draws", "flux2_train/data/order.py", "enumerate(order, first)", "enumerate(order, 1)",
          "tests/test_weighting.py", "drawn_by_step"),
    Break("third-source", "flux2_train/data/dataset.py", "source=item.source + len(self.sources)",
          "source=item.source + 1", "tests/test_weighting.py", "folders_are_chained"),
    Break("mask-minimum-cuts", "flux2_train/data/masks.py", "mask.minimum + (1 - mask.minimum) * values",
          "values.clamp(min=mask.minimum)", "tests/test_weighting.py", "masks_from_a_folder"),
    Break("other-hosts-files-swept", "flux2_train/atomic.py", 'ours and ours["table"] == _process_table() and not',
          "ours and not", "tests/test_whole.py", "removed"),
    Break("key-without-encoder", "flux2_train/data/cache.py", "canonical_hash([encoder.identity, v.canonical()])",
          "canonical_hash(v.canonical())", "tests/test_cache.py", "another_vae"),
    Break("ctime-ignored", "flux2_train/data/index.py", "stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino",
          "stat.st_mtime_ns, 0, stat.st_ino", "tests/test_data.py", "read_again_only"),
    Break("exif-mirrored", "flux2_train/data/images.py", "in (5, 6, 7, 8)", "in (6, 8)",
          "tests/test_images.py", "exif"),
)
AROUND = (
    Break("usage-exit-code", "flux2_train/terminal/main.py", "return 2 if isinstance(error, UsageError) else 1",
          "return 1", "tests/test_terminal.py", "wrong_command_line"),
    Break("batch-option-ignored", "flux2_train/terminal/dataset.py", "summary(dataset, (arguments.batch,))",
          "summary(dataset, (1,))", "tests/test_terminal_data.py", "jobs_settings"),
    Break("offset-widget-ignored", "flux2_train/data/items.py", "timestep_offset=request.timestep_offset,", "",
          "tests/test_dataset_nodes.py", "timestep_offset"),
    Break("limits-swapped", "flux2_train/settings/earlier.py", '"least": "min", "most": "max"',
          '"least": "max", "most": "min"', "tests/test_settings.py", "earlier"),
    Break("preservation-wire-ignored", "nodes/train.py", ", **(preserve or {})}", "}",
          "tests/test_nodes_trainer.py", "every_wire"),
    Break("unmatched-widget-ignored", "nodes/apply.py", "host.read(model, weights, allow_unmatched)",
          "host.read(model, weights)", "tests/test_nodes.py", "match_nothing"),
    Break("run-name-leaves-folder", "nodes/compare.py", ' if Path(name).name == name != ".." else []', "",
          "tests/test_compare.py", "not_in_its_folder"),
    Break("reference-bound", "nodes/validation.py", "max(images) >= len(prompts)", "max(images) > len(prompts)",
          "tests/test_nodes_validation.py", "without_a_prompt"),
    Break("route-takes-any-name", "nodes/routes.py", " or not is_file_name(name)", "",
          "tests/test_nodes_routes.py", "no_runs_name"),
    Break("failure-exits-0", "scripts/setup.sh", 'fail() { echo "error: $*" >&2; exit 1; }',
          'fail() { echo "error: $*" >&2; exit; }', "tests/test_scripts.py", "wrong_comfyui"),
)
# fmt: on
TABLE: tuple[Break, ...] = FLOW + ADAPTERS + HOST + MEMORY + RUN + DATA + AROUND
